"""Tasks that a policy is trained on: corpora, rewards and scorers."""
