"""What surrounds the step: loops over the stages, what a run writes, its figures and its report."""
