"""`tidegate`: the commands, and how each of them ends.

Owns the table of commands and the exit codes. A fault is one line on stderr with what to do about it, never a
traceback; a programmer's error is a traceback, never a line. Each command lives in the neighbour of its name.

    0 done    2 the request is wrong    3 the machine cannot do it    4 the engine failed
    130 stopped by Ctrl-C               141 whoever read the output went away
"""

from __future__ import annotations

import signal
import sys
from typing import Final, NoReturn

import typer

from tidegate.cli.demo import demo
from tidegate.cli.doctor import doctor
from tidegate.cli.image import image
from tidegate.cli.jobs import jobs
from tidegate.cli.plan import plan
from tidegate.cli.replay import replay
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
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (serve, image, demo, jobs, plan, top, doctor, replay, synth):
    app.command()(command)


@app.callback()
def commands() -> None:
    """Images on one consumer GPU that never fail for lack of memory."""


def main() -> NoReturn:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""
    try:
        # Without standalone mode typer returns the code of an Exit, and lets the errors through.
        code = app(args=arguments, prog_name="tidegate", standalone_mode=False)
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
    except BrokenPipeError:
        return EXIT_PIPE
    return code if isinstance(code, int) else 0


def _ended(message: str, code: int, remedy: str = "") -> int:
    print("tidegate: " + " ".join(f"{message} {remedy}".split()), file=sys.stderr)
    return code
