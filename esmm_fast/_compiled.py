"""The compiled parts of the package; where one is missing or does not load, the likely causes."""

from pathlib import Path


def find(name: str) -> Path | None:
    """Returns the path of a compiled file of the package, None where it is not there."""
    import esmm_fast

    for folder in esmm_fast.__path__:  # an editable install has two: sources and built files
        path = Path(folder) / name
        if path.exists():
            return path
    return None


def missing(name: str) -> str:
    """Returns why `name` may not be there."""
    import esmm_fast

    return (
        f"esmm_fast was imported from {list(esmm_fast.__path__)}, but {name} is not there. "
        "Likely causes:\n"
        "  1. Python started in the source folder, hiding the installed package: start it\n"
        "     elsewhere, or call `pytest` instead of `python -m pytest`.\n"
        "  2. The package was copied instead of installed: run `pip install .`\n"
        "  3. It was built for another version of Python: install it with the one that runs."
    )


def unloadable(path: object, error: object, built_for: str) -> str:
    """Returns why the library at `path` may not load; `built_for`: what it is loaded with."""
    return (
        f"{path} could not be loaded with {built_for}: {error}. Likely causes:\n"
        "  1. torch is older than 2.10, the first with the stable ABI esmm_fast is built on.\n"
        "  2. The library was built for another platform or C++ runtime:\n"
        "     `pip install --force-reinstall --no-deps .`\n"
        "  3. A conda environment brings an older libstdc++ than the compiler that built it."
    )


try:
    import esmm_fast._native as _native  # noqa: F401
except ImportError as error:
    if error.path is None:  # there is no such file
        raise ImportError(missing("_native (the parser and the batches)")) from error
    raise ImportError(unloadable(error.path, error, "this Python")) from error
