"""Score Distillation Lab in the browser: `python app.py`. Parses its arguments, builds the server, launches it."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from sdlab.console import own_words, say, tell
from sdlab.options import DEFAULT_PRESET, NETWORK_PRESET

NAME = "app.py"
MOST_LISTED = 20  # kept runs
SEATS = 20  # of a classroom
GRACE, GRACE_OF_CLASS = 60.0, 300.0  # seconds; a lid that was closed, or a network that failed, costs no run
ANY_HOST = ("0.0.0.0", "::")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def parser() -> argparse.ArgumentParser:
    """Return the parser; on a Hugging Face Space the server is public by default."""
    on_space = "SPACE_ID" in os.environ
    if on_space:  # whose proxies name the visitors' addresses
        os.environ.setdefault("FORWARDED_ALLOW_IPS", "*")
    p = argparse.ArgumentParser(prog="app.py", description="Watch score distillation shape a 3D object, live.")
    p.add_argument("--host", default="0.0.0.0" if on_space else "127.0.0.1", help="address to listen on")
    port = os.environ.get("GRADIO_SERVER_PORT", "7860")
    p.add_argument("--port", help=f"port to listen on; 0 takes any free one (default {port}, with --desktop 0)")
    p.set_defaults(usual_port=port)
    p.add_argument(
        "--public-url",
        action="append",
        default=[],
        metavar="URL",
        help="address that visitors use, such as https://lab.example; needed for a host name, may be repeated",
    )
    p.add_argument(
        "--root-path",
        default=os.environ.get("GRADIO_ROOT_PATH", ""),
        metavar="PATH",
        help="path that a proxy publishes the page at, such as /lab, if it passes that path on",
    )
    p.add_argument(
        "--preset",
        help=f"preset to begin with, or a .toml file (default {DEFAULT_PRESET}; with --prior {NETWORK_PRESET})",
    )
    p.add_argument("--prior", help="toybox, a folder in the diffusers layout, or owner/name on the Hub")
    p.add_argument(
        "--trust-links",
        action="store_true",
        help="links to the page may choose files and models, too; opening one then reads or downloads them",
    )
    p.add_argument(
        "--classroom",
        action="store_true",
        help="a class with a teacher's page: students work as visitors, and the teacher sees and steers all seats",
    )
    p.add_argument(
        "--seats", type=int, metavar="N", help=f"students in the classroom at the same time (default {SEATS})"
    )
    p.add_argument("--pin", help="of the teacher's page, 6 to 12 digits (default: a random one, printed at the start)")
    p.add_argument(
        "--api", action="store_true", help="endpoints for programs and agents, see docs/usage.md; visitors' limits hold"
    )
    p.add_argument("--mcp", action="store_true", help="with --api: the endpoints are tools of MCP for agents, too")
    p.add_argument(
        "--own-loss",
        type=Path,
        metavar="FILE",
        help="a loss of your own, in Python: a new file begins as an exercise; for a server on this machine only",
    )
    p.add_argument("--device", default="auto", help="cpu, cuda, or auto (cuda if available)")
    p.add_argument("--max-sessions", type=int, default=8, help="visitors at the same time (default %(default)s)")
    p.add_argument(
        "--batch-sessions",
        action="store_true",
        help="visitors share forward passes, for a GPU with many visitors; runs then repeat only up to rounding",
    )
    p.add_argument(
        "--memory",
        type=float,
        metavar="GB",
        help="memory that the server may use; runs that would need more are refused or paused (default: 80%% of the "
        "machine's or container's)",
    )
    p.add_argument(
        "--grace",
        type=float,
        help=f"seconds for which a closed page keeps its session (default {GRACE:.0f}, in a classroom "
        f"{GRACE_OF_CLASS:.0f})",
    )
    p.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="DIR",
        help="keep runs on disk while they go, and offer each to its page again after a restart (default folder: runs, "
        "in the cache folder)",
    )
    p.add_argument("--log", metavar="FILE", help="append libraries' messages and tracebacks to FILE (default: dropped)")
    p.add_argument(
        "--desktop", action="store_true", help="show the page in a window of its own, whose end is the server's"
    )
    p.add_argument("--no-browser", action="store_true", help="do not open a browser window")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until interrupted; return 2 after one line on stderr when an argument is invalid."""
    args = parser().parse_args(argv)
    with contextlib.ExitStack() as stack:
        try:
            log = stack.enter_context(open_log(args.log)) if args.log else None
        except OSError as e:
            say(f"--log {args.log}: {e.strerror or e}", NAME)
            return 2
        stack.enter_context(own_words(log))
        return run(args)


def open_log(path: str) -> TextIO:
    """Return the log file, to append to; OSError if it cannot be opened."""
    return open(Path(path).expanduser(), "a", encoding="utf-8", errors="backslashreplace", buffering=1)


def run(args: argparse.Namespace) -> int:
    """Serve as `args` say; return the exit code, see `main`."""
    with contextlib.ExitStack() as stack:
        try:
            zero = zero_gpu(args)  # before torch and Gradio are imported
            check(args)
            port = args.port or ("0" if args.desktop else args.usual_port)
            listener = bind(args.host, port)  # before the slow imports
            app = build(args, listener.getsockname()[1], stack, zero)
        except (ValueError, OSError) as e:
            say(str(e), NAME)
            return 2
        if zero is not None:
            return serve_on_zero_gpu(app, listener, args, zero)
        return serve_window(app, listener) if args.desktop else serve(app, listener, args)


def zero_gpu(args: argparse.Namespace) -> Any:
    """Return the platform if this is a Space on ZeroGPU, where the server itself has no GPU; None elsewhere. ValueError
    if it cannot be used."""
    if os.environ.get("SPACES_ZERO_GPU", "").lower() not in ("1", "t", "true"):
        return None
    if args.device not in ("auto", "cpu"):
        raise ValueError(f"--device {args.device}: on ZeroGPU, the server runs on the CPU; leave this out")
    args.device = "cpu"
    try:
        spaces = importlib.import_module("spaces")  # it has to patch torch before others import it
    except ImportError as e:
        raise ValueError(f"this is a Space on ZeroGPU, but its package spaces cannot be imported: {e}") from e
    from sdlab.ui.zerogpu import ZeroGpu

    return ZeroGpu(spaces)


def check(args: argparse.Namespace) -> None:
    """Complete and check the arguments, as far as that needs no slow imports; ValueError names the one that is
    wrong."""
    if args.max_sessions < 1:
        raise ValueError(f"--max-sessions {args.max_sessions}: at least 1 is needed")
    if not args.classroom and (args.seats is not None or args.pin is not None):
        raise ValueError("--seats and --pin are for a classroom: add --classroom")
    if args.classroom:
        check_class(args)
    if args.desktop:
        require_desktop(args)
    if args.mcp:
        require_tools(args)


def require_tools(args: argparse.Namespace) -> None:
    """Raise ValueError if there can be no tools for agents."""
    from sdlab.ui.agents import require_mcp

    if not args.api:
        raise ValueError("--mcp: it makes tools of the endpoints of --api, so add --api")
    require_mcp()


def require_desktop(args: argparse.Namespace) -> None:
    """Raise ValueError if the page cannot have a window of its own, or others could reach it."""
    from sdlab.ui.desktop import require_window

    others = [f"--host {args.host}"] if args.host not in LOOPBACK else []
    others += ["--classroom"] if args.classroom else []
    others += [f"--public-url {url}" for url in args.public_url]
    if others:
        raise ValueError(f"{others[0]}: with --desktop, the server is for this computer only; leave one of them out")
    require_window(has_screen())


def check_class(args: argparse.Namespace) -> None:
    """Complete and check the arguments of a classroom; ValueError names the one that is wrong."""
    from sdlab.ui.pins import checked_pin, random_pin

    args.seats = SEATS if args.seats is None else args.seats
    if args.seats < 1:
        raise ValueError(f"--seats {args.seats}: at least 1 is needed")
    args.pin = random_pin() if args.pin is None else checked_pin(args.pin)


def bind(host: str, port: str) -> socket.socket:
    """Return the listening socket; ValueError names --port or --host and a remedy."""
    if not port.isdigit() or int(port) > 65535:
        raise ValueError(f"--port {port}: a number from 0 to 65535 is needed")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if os.name == "posix":  # take over a port that another server just left; on Windows this would share it
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, int(port)))
        listener.listen(128)
    except OSError as e:
        listener.close()
        if isinstance(e, socket.gaierror):
            raise ValueError(f"--host {host}: unknown address; 127.0.0.1 is this machine") from e
        raise ValueError(f"--port {port} on {host}: {e.strerror or e}; choose another with --port, or --port 0") from e
    return listener


def start_preset(args: argparse.Namespace) -> str:
    """Return the preset to begin with; a network replaces that of a preset with a network."""
    return args.preset or (NETWORK_PRESET if args.prior else DEFAULT_PRESET)


def build(args: argparse.Namespace, port: int, stack: contextlib.ExitStack, zero: Any = None) -> Any:
    """Return the application, which will listen on `port`, with what it holds in `stack`, and with lanes that the
    platform `zero` gives a GPU for bursts. ValueError for an unknown preset, prior or device, or a folder that cannot
    be used."""
    from sdlab.options import choose_device, settings_for

    preset = start_preset(args)
    device = choose_device(args.device)

    from sdlab.live.manager import Manager
    from sdlab.live.memory import Memory, bound
    from sdlab.priors.galleries import MEMORY_SHARE, SHARED
    from sdlab.settings import preset_names
    from sdlab.ui.server import Class
    from sdlab.ui.server import build as build_server
    from sdlab.ui.visitors import OWNER_IDLE, VISITOR_IDLE, VISITOR_LANES, VISITOR_UNSEEN, public
    from sdlab.web import Site

    site = Site.of_environment(args.public_url, args.root_path, args.host)
    local = args.host in LOOPBACK and not site.is_public and not args.classroom
    own = own_loss(args.own_loss, local and site.loopback) if args.own_loss is not None else None
    settings = settings_for(preset, [], prior__path=args.prior)
    named = preset if preset in preset_names() and args.prior is None else None
    settings, locked = (settings, ()) if local else public(settings)
    idle = OWNER_IDLE if local else VISITOR_IDLE
    memory = Memory(None if args.memory is None else int(args.memory * 1e9))
    SHARED.max_bytes = min(SHARED.max_bytes, int(MEMORY_SHARE * memory.limit))
    store = kept_runs(args.resume, stack) if args.resume is not None else None
    sessions, grace, seats = args.max_sessions, GRACE, args.max_sessions
    if args.classroom:  # nobody's lanes take another student's seat
        sessions, grace, seats = args.seats * VISITOR_LANES, GRACE_OF_CLASS, args.seats
    grace = grace if args.grace is None else args.grace
    unseen = None if local else VISITOR_UNSEEN
    bursts = zero.bursts if zero is not None else None
    manager = Manager(device, sessions, grace, idle, args.batch_sessions, memory, unseen, bursts)
    manager.preload(settings, None if local else seats)
    threading.Thread(target=say_rasteriser, args=(device,), name="sdlab-rasteriser", daemon=True).start()
    on_space = "SPACE_ID" in os.environ
    classroom = Class(args.seats, args.pin, tuple(addresses(args, port, site.urls))) if args.classroom else None
    app = build_server(
        manager, settings, named, locked, on_space, site, args.trust_links, classroom, own, args.api, store, args.mcp
    )
    bound(memory.limit)
    return app


def kept_runs(folder: str, stack: contextlib.ExitStack) -> Any:
    """Return the runs kept in a folder, "" for the default one, which is held in `stack`; print which there are. Raises
    ValueError when it cannot be used."""
    from sdlab.live.kept import Store
    from sdlab.machine import cache_folder

    store = Store(Path(folder).expanduser() if folder else cache_folder() / "runs")
    stack.enter_context(store.held())
    store.prune()
    runs = store.list()
    tell(f"Runs are kept in {store.folder}; there are {len(runs)}" + (", newest first:" if runs else ""))
    for run in runs[:MOST_LISTED]:
        tell(f"  {run}")
    return store


def own_loss(path: Path, local: bool) -> Any:
    """Return the user's own loss in the file `path`, a new one if there is none; ValueError if it has an error, or
    unless the server is `local`: what is in the file, or typed on the page, is code that the server runs."""
    if not local or "SPACE_ID" in os.environ:
        raise ValueError(
            f"--own-loss {path}: it is code, so only a server that nobody else can reach runs it; leave out --host, "
            "--public-url and --classroom, and run it on your own machine"
        )
    from sdlab import own_loss

    path = path.expanduser()
    if own_loss.begin(path):
        tell(f"{path} is new: an exercise to begin with")
    return own_loss.OwnLoss(path)


def say_rasteriser(device: Any) -> None:
    """Print which rasteriser a GPU gets, and why if it is not gsplat. Runs in a thread, because it may have to
    compile."""
    from sdlab.raster import announcement_for, backend_for

    announcement = announcement_for(device)
    if announcement:
        tell(f"Rasteriser: {announcement} ...")
    rasteriser = backend_for(device)
    if rasteriser.note:
        say(f"Rasteriser: {rasteriser.note}.", NAME)
    elif device.type == "cuda":
        tell(f"Rasteriser: {rasteriser.name} on {device}")


def address_of(host: str, listener: socket.socket) -> str:
    """Return the address of the page for a browser on this machine."""
    host = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/"


def serve_window(app: Any, listener: socket.socket) -> int:
    """Serve a window with the page until it is closed; return 2 after one line on stderr if there can be none."""
    from sdlab.ui.desktop import show
    from sdlab.ui.server import server as page_server

    server = page_server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="sdlab-server")
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.05)
        url = address(*listener.getsockname()[:2])
        tell(f"Score Distillation Lab has a window of its own, and is at {url} meanwhile")
        show(url)
    except RuntimeError as e:
        say(str(e), NAME)
        return 2
    finally:
        server.should_exit = True
        thread.join()
    return 0


def serve_on_zero_gpu(app: Any, listener: socket.socket, args: argparse.Namespace, zero: Any) -> int:
    """Serve on ZeroGPU until interrupted, and return 0: by our own server, or by Gradio's `launch`."""
    from sdlab.ui import zerogpu

    port = listener.getsockname()[1]
    zerogpu.serves_at(port)
    if zero.way == "server":
        zero.report()
        return serve(app, listener, args)
    close = zerogpu.launch(app, args.host, listener)
    tell(f"Score Distillation Lab is at {address(args.host, port)} (started by Gradio's launch)")
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    close()
    return 0


def serve(app: Any, listener: socket.socket, args: argparse.Namespace) -> int:
    """Serve until interrupted, and return 0; print the address once the page is ready, and open it in a browser if
    there is a screen."""
    from sdlab.ui.agents import ADDRESS
    from sdlab.ui.server import server as page_server

    server = page_server(app)
    port = listener.getsockname()[1]
    url = address("127.0.0.1" if args.host in ANY_HOST else args.host, port)

    fragment = app.state.fragment

    def announce() -> None:
        while not server.started:
            if server.should_exit:
                return
            time.sleep(0.05)
        tell(f"Score Distillation Lab is at {url}{fragment} (press Ctrl+C to stop)")
        if args.mcp:
            tell(f"Agents:   {url.rstrip('/')}{ADDRESS} (MCP, streamable HTTP)")
        if args.classroom:
            tell_class(args, port, url)
        if args.host in LOOPBACK and not args.no_browser and has_screen():
            webbrowser.open(url + fragment)

    threading.Thread(target=announce, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after a clean shutdown
        server.run(sockets=[listener])
    return 0


def address(host: str, port: int) -> str:
    """Return the address of the page at a host."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def addresses(args: argparse.Namespace, port: int, urls: Sequence[str] = ()) -> list[str]:
    """Return the addresses that students can open: `urls` if there are any, or this machine's on its networks."""
    from sdlab.machine import network_addresses

    if urls:
        return list(urls)
    hosts = network_addresses() if args.host in ANY_HOST else [args.host]
    return [address(host, port) for host in hosts or ["127.0.0.1"]]


def tell_class(args: argparse.Namespace, port: int, url: str) -> None:
    """Print what students and teacher open, and the PIN: here, and nowhere else."""
    tell(f"Students: {'  or  '.join(args.public_url or addresses(args, port))}")
    if args.host in LOOPBACK and not args.public_url:
        tell("Only this computer reaches this address: add --host 0.0.0.0 for others.")
    tell(f"Teacher:  {url}teacher/  PIN {args.pin}")


def has_screen() -> bool:
    """Return whether this machine can show a browser window."""
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread that still compiles in the background would abort during Python's own shutdown
