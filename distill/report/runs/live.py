"""A page of a running run, sweep or study that refreshes itself, served to this machine alone.

The server is the standard library's, bound to the loopback address. It answers GET under a path that begins with a
secret token, for a Host that is this machine (so that no page of another site reads it by a name of its own), and
nothing else. It only reads files: what `watch` reads, and the files of WORKDIR/report.
"""

import http.server
import secrets
import time
from importlib import resources
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

import numpy as np

from distill.errors import ReportError
from distill.report import page
from distill.report.charts import web
from distill.report.charts.chart import Axis, Chart, Panel, Series
from distill.report.page import Column
from distill.report.runs import watch
from distill.report.runs.watch import RunLog
from distill.report.theme import LOSS, places
from distill.system.numbers import si

_SHOWN = {"ntp": f"next-token {LOSS}", "tokens_per_second": "tokens per second"}  # the panels of the page
_TYPES = {".html": "text/html; charset=utf-8", ".png": "image/png", ".svg": "image/svg+xml", ".csv": "text/csv"}
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class LivePage:
    """Serves the page of a workdir while it is open: `with LivePage(workdir) as live: print(live.address); live.run()`.

    Raises ReportError if there is nothing to watch, or for a port that is taken.
    """

    def __init__(self, workdir: str | Path, port: int = 0, every: float = 2.0):
        watch.find(workdir)
        self._token = secrets.token_urlsafe(24)
        try:
            self._server = _Server(Path(workdir), self._token, port, every)
        except OSError as error:
            raise ReportError(
                f"port {port}: cannot be opened ({error.strerror}); wanted a free one, or 0 for any"
            ) from None

    @property
    def address(self) -> str:
        """The address of the page, with its token."""
        return f"http://127.0.0.1:{self._server.server_port}/{self._token}/"

    def run(self) -> None:
        """Serves until `stop`, or an exception such as KeyboardInterrupt."""
        self._server.serve_forever(poll_interval=0.2)

    def stop(self) -> None:
        """Ends `run`, from another thread."""
        self._server.shutdown()

    def __enter__(self) -> "LivePage":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, workdir: Path, token: str, port: int, every: float):
        self.workdir, self.token, self.every = workdir, token, every
        super().__init__(("127.0.0.1", port), _Handler)


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers GET of the page, of its data, and of the report's files."""

    server: _Server

    def do_GET(self) -> None:
        """One answer; everything that is not named here is not found."""
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        _, token, *rest = urlsplit(self.path).path.split("/")
        if host not in ("127.0.0.1", "localhost") or not secrets.compare_digest(
            token.encode(), self.server.token.encode()
        ):
            self._answer(404, "text/plain", b"not found\n")
        elif rest == [""]:
            self._answer(200, _TYPES[".html"], compose(self.server.workdir, self.server.every).encode())
        elif rest == ["data"]:
            self._answer(200, "application/json", data(self.server.workdir).encode())
        elif len(rest) == 2 and rest[0] == "report":
            self._report(rest[1] or "index.html")
        else:
            self._answer(404, "text/plain", b"not found\n")

    def _report(self, name: str) -> None:
        """A file of the report, by a name that is in the folder's listing."""
        folder = self.server.workdir / "report"
        known = {file.name: file for file in folder.iterdir() if file.is_file()} if folder.is_dir() else {}
        if name in known and Path(name).suffix in _TYPES:
            self._answer(200, _TYPES[Path(name).suffix], known[name].read_bytes())
        else:
            self._answer(404, "text/plain", b"not found\n")

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in (_HEADERS | {"Content-Type": kind, "Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: the token stands in every path, and a log would keep it."""


def compose(workdir: Path, every: float) -> str:
    """The HTML of the page, which asks for `data` every so many seconds."""
    name = workdir.resolve().name
    parts = [
        f'<header><h1>{page.escape(name)}, live</h1><p class="soft" id="state" role="status"></p></header>',
        '<p id="report" hidden><a href="report/">The report so far</a></p>',
        page.section("curves", "Curves", web.empty_figure("live", "Training curves of the latest runs.")),
        page.section("runs", "Runs", page.table("The latest runs", [Column(name=n, text=True) for n in _COLUMNS], [])),
        f'<script type="application/json" id="every">{page.encode(every)}</script>',
        web.colophon(),
    ]
    script = resources.files("distill.report.runs").joinpath("live.js").read_text("utf-8")
    return page.page(f"{name}, live", parts, (*web.scripts(), script), web.style(), live=True)


_COLUMNS = ("run", "step", "tokens", "loss", "tokens/s", "state")


def data(workdir: Path, now: float | None = None) -> str:
    """What the page shows, as JSON: the chart, a row for each of the latest runs, and whether there is a report."""
    now = time.time() if now is None else now
    paths = watch.find(workdir)
    runs = [watch.read(path) for path in paths[: watch.MOST]]
    more = f"; {len(paths) - len(runs)} older ones are not shown" if len(paths) > len(runs) else ""
    text = f"{len(runs)} runs, the latest first{more}."
    report = "true" if (workdir / "report" / "index.html").is_file() else "false"
    rows = page.encode([_row(run, now) for run in runs])
    return f'{{"text":{page.encode(text)},"report":{report},"rows":{rows},"chart":{web.data(chart(runs))}}}'


def chart(runs: list[RunLog]) -> Chart:
    """The loss and the speed of runs over their tokens, a colour for each."""
    panels = []
    for name, title in _SHOWN.items():
        series = [
            Series(
                label=run.name,
                x=run.curves.at["tokens"],
                y=run.curves.mean[name],
                colour=place,
                line="-",
                marker="o" if len(run.curves) < 3 else "",
            )
            for run, place in zip(runs, places(len(runs)))
            if np.isfinite(run.curves.mean[name]).any()
        ]
        if series:
            x = Axis(label="tokens", counts=True)
            panels.append(Panel(title=title, x=x, y=Axis(label=title.partition(" (")[0]), series=tuple(series)))
    return Chart(name="live", alt="Training curves.", caption="", panels=tuple(panels), columns=2, height=3.2)


def _row(run: RunLog, now: float) -> list[str]:
    step, tokens, loss, rate = (run.last.get(name) for name in ("step", "tokens", "ntp", "tokens_per_second"))
    return [
        run.name,
        "" if step is None else f"{step:,.0f}",
        "" if tokens is None else si(tokens),
        "" if loss is None else f"{loss:.4f}",
        "" if rate is None else f"{rate:,.0f}",
        watch.state(run, now),
    ]
