"""`python -m esmm_fast` is the esmm-fast command."""

from .cli import main

main()
