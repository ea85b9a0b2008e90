"""The embedded corpus: generated dialogues in an invented town, in the file layout of MultiWOZ 2.2.

Its places and wording are its own; its domain and slot names are those of the MultiWOZ 2.2 schema, so
that one reader and one scorer serve both.
"""

from morejax.tasks.multiwoz.embedded.cache import embedded_root
from morejax.tasks.multiwoz.embedded.entities import build_world
from morejax.tasks.multiwoz.embedded.generator import GENERATOR_VERSION, generate
from morejax.tasks.multiwoz.embedded.writer import write_embedded

__all__ = ["GENERATOR_VERSION", "build_world", "embedded_root", "generate", "write_embedded"]
