"""`tidegate`: the commands, and how each of them ends.

Owns the table of commands and the exit codes. A fault is one line on stderr with what to do about it, never a
traceback; a programmer's error is a traceback, never a line. Each command lives in the neighbour of its name.

    0 done    2 the request is wrong    3 the machine cannot do it    4 the engine failed
    130 stopped by Ctrl-C               141 whoever read the output went away
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import Annotated, Final, NoReturn

import typer

from tidegate import __version__
from tidegate.cli.chat import chat
from tidegate.cli.demo import demo
from tidegate.cli.doctor import doctor
from tidegate.cli.image import image
from tidegate.cli.jobs import jobs
from tidegate.cli.models import models
from tidegate.cli.plan import plan
from tidegate.cli.replay import replay
from tidegate.cli.run import run as run_beside
from tidegate.cli.serve import serve
from tidegate.cli.synth import synth
from tidegate.cli.top import top
from tidegate.core.faults import CapacityError, ClientError, WorkerError
from tidegate.runtime.oneshot import Interrupted

EXIT_CLIENT: Final = 2
EXIT_CAPACITY: Final = 3
EXIT_WORKER: Final = 4
EXIT_INTERRUPTED: Final = 128 + signal.SIGINT
EXIT_PIPE: Final = 128 + signal.SIGPIPE

app = typer.Typer(
    name="tidegate",
    help="Images on one consumer GPU that never fail for lack of memory.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (serve, image, chat, demo, models, jobs, plan, top, doctor, replay, synth):
    app.command()(command)
# What stands behind the program is the program's.
app.command("run", context_settings={"allow_interspersed_args": False})(run_beside)


@app.callback()
def commands(
    context: typer.Context,
    *,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Images on one consumer GPU that never fail for lack of memory."""
    if version:
        typer.echo(f"tidegate {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> NoReturn:
    """Run the command line and exit."""
    _open_standard_streams()
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError:  # told already; Python would try again at its end, and have a word and a code of its own
        _silence(1)
    sys.exit(code)


def _open_standard_streams() -> None:
    """Give the numbers 0, 1 and 2 to /dev/null where they are closed, or the next file opened gets one."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:  # closed, as `>&-` leaves it
            _silence(number)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def _silence(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""
    try:
        # Without standalone mode typer returns the code of an Exit, and lets the errors through.
        code = app(args=arguments, prog_name="tidegate", standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:
        return _ended(f"{error.format_message().rstrip('.')}.", EXIT_CLIENT, remedy="Try: tidegate --help")
    except (Interrupted, KeyboardInterrupt, typer.Abort) as stopped:
        return _ended(str(stopped) or "Stopped.", EXIT_INTERRUPTED)
    except ClientError as fault:
        return _ended(fault.message, EXIT_CLIENT, remedy=fault.remedy)
    except CapacityError as fault:
        return _ended(fault.message, EXIT_CAPACITY, remedy=fault.remedy)
    except WorkerError as fault:
        return _ended(fault.message, EXIT_WORKER, remedy=fault.remedy)
    except (BrokenPipeError, SystemExit) as ended:
        # typer makes a SystemExit of a broken pipe.
        if isinstance(ended, SystemExit) and not isinstance(ended.__context__, BrokenPipeError):
            raise
        return EXIT_PIPE
    except OSError as error:
        if _takes_output():  # then it is a mistake of ours
            raise
        message = f"Standard output does not take what there is to say: {error.strerror}."
        return _ended(message, EXIT_CLIENT, remedy="Send it to a place that can be written.")
    return code if isinstance(code, int) else 0


def _takes_output() -> bool:
    try:
        # Where output is not kept back, only a new try tells.
        print(flush=True)
    except OSError:
        return False
    return True


def _ended(message: str, code: int, remedy: str = "") -> int:
    with contextlib.suppress(OSError):  # a stderr that is full or gone; the code is said all the same
        print("tidegate: " + " ".join(f"{message} {remedy}".split()), file=sys.stderr)
    return code
