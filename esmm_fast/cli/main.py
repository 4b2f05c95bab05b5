"""The esmm-fast command: its group, and what becomes of an error."""

from __future__ import annotations

import difflib
import signal
import sys
from typing import NoReturn

import click

from .. import __version__
from ..run.interruption import Interrupted
from . import comparison, data, run


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="esmm-fast")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def cli() -> None:
    """Entire-space CTR/CVR models, from the raw log to the report.

    LOG: the files of a raw log. DATASET: what `prepare` makes of one half of it. RUN: what
    `train` makes. --debug can stand anywhere.
    """


for _command in (
    comparison.quickstart,
    data.synth,
    data.prepare,
    data.merge,
    data.info,
    data.head,
    data.dump,
    run.train,
    run.evaluate,
    run.predict,
    comparison.compare,
):
    cli.add_command(_command)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs the command and exits: 0 done, 1 failure, 2 usage, 130 and 143 after a signal."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in arguments
    signal.signal(signal.SIGTERM, _terminate)
    try:
        given = [a for a in arguments if a != "--debug"]
        cli.main(list(given), prog_name="esmm-fast", standalone_mode=False, obj=given)
        sys.stdout.flush()  # where it is full or closed, that is an error like any other
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        if isinstance(error, click.NoSuchOption):
            error = _without_far_guesses(error)
        context = getattr(error, "ctx", None)
        hint = f" ({context.command_path} --help lists what there is)" if context else ""
        click.echo(f"Error: {_one_line(error.format_message())}{hint}", err=True)
        sys.exit(error.exit_code)
    except Interrupted as error:
        click.echo(error, err=True)
        sys.exit(128 + error.number)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        click.echo(f"Error: {_readable(error)}", err=True)
        sys.exit(1)
    sys.exit(0)


def _without_far_guesses(error: click.NoSuchOption) -> click.NoSuchOption:
    near = {option.lstrip("-"): option for option in error.possibilities or ()}
    found = difflib.get_close_matches(error.option_name.lstrip("-"), near)
    guesses = [near[name] for name in found]
    return click.NoSuchOption(error.option_name, error.message, guesses, error.ctx)


def _terminate(signal_number: int, frame: object) -> NoReturn:
    sys.exit(128 + signal_number)


def _readable(error: Exception) -> str:
    """Returns an error as one line; one that was not foreseen with its kind and a hint."""
    message = _one_line(error.args[0] if isinstance(error, KeyError) and error.args else error)
    foreseen = (ValueError, OSError, ArithmeticError, ImportError, MemoryError, TypeError)
    if isinstance(error, OSError) and error.strerror:
        name = error.filename or ("standard output" if _is_of_output(error) else None)
        message = ": ".join(filter(None, (name, error.strerror)))
    message = message or "out of memory" * isinstance(error, MemoryError)
    if isinstance(error, foreseen) and message:
        return message
    return f"{type(error).__name__}: {message} (--debug shows where)"


def _is_of_output(error: Exception) -> bool:
    """Returns whether an error comes from click.echo or from the last flush, here."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return at is not None and at.tb_frame.f_code.co_filename in (click.utils.__file__, __file__)


def _one_line(message: object) -> str:
    return " ".join(str(message).split())
