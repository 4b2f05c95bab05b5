"""The esmm-fast command: parses options and calls the rest, imported when it is needed."""

from .main import cli as cli
from .main import main as main
