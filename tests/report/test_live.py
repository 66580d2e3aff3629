"""The live page: it follows a log that grows, and answers nobody who has not the address."""

import http.client
import json
import signal
import subprocess
import sys
import threading
from urllib.parse import urlsplit

import pytest

from distill.errors import ReportError
from distill.report.runs.live import LivePage
from tests.report.test_charts import SIZES
from tests.report.test_watch import log


@pytest.fixture
def live(tmp_path):
    """A served study of one run, with a report and a file that is nobody's business."""
    folder = tmp_path / "study"
    log(folder / "runs" / "one", [3.0, 2.0, 1.5])
    (folder / "report").mkdir()
    (folder / "report" / "index.html").write_text("<h1>report</h1>")
    (folder / "secret.html").write_text("secret")
    with LivePage(folder, every=0.2) as page:
        thread = threading.Thread(target=page.run)
        thread.start()
        yield page, folder
        page.stop()
        thread.join()


def ask(page, path, method="GET", host=None):
    """(status, body, headers) of a request to the server."""
    place = urlsplit(page.address)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=10)
    connection.request(method, path, headers={"Host": host or place.netloc})
    answer = connection.getresponse()
    found = answer.status, answer.read().decode(), dict(answer.getheaders())
    connection.close()
    return found


def test_only_the_address_with_its_token_is_answered(live):
    page, _ = live
    place = urlsplit(page.address)
    assert place.hostname == "127.0.0.1" and len(place.path) > 30
    status, body, headers = ask(page, place.path)
    assert status == 200 and "study, live" in body
    assert headers["Referrer-Policy"] == "no-referrer" and headers["Cache-Control"] == "no-store"
    for path in ("/", "/data", "/x" + place.path, place.path[:-2] + "/", f"{place.path}../secret.html"):
        assert ask(page, path)[0] == 404, path
    for name in ("../secret.html", "..%2fsecret.html", "none.png", "../runs/one/config.txt"):
        assert ask(page, f"{place.path}report/{name}")[0] == 404, name
    assert ask(page, f"{place.path}report/")[:2] == (200, "<h1>report</h1>")
    # A name of another site that resolves to this machine (DNS rebinding), and every way to write.
    assert ask(page, place.path, host="evil.example")[0] == 404
    assert {ask(page, place.path, method)[0] for method in ("POST", "PUT", "DELETE", "HEAD")} == {501}


def test_the_data_are_those_of_the_log(live):
    page, _ = live
    told = json.loads(ask(page, f"{urlsplit(page.address).path}data")[1])
    assert told["report"] and told["rows"][0][:4] == ["one", "30", "15.4K", "1.5000"]
    assert told["chart"]["panels"][0]["series"][0]["y"] == [3, 2, 1.5]


@pytest.mark.parametrize("width, scheme", SIZES)
def test_a_reader_sees_the_run_go_on(live, visit, width, scheme):
    from playwright.sync_api import expect

    page, folder = live
    tab = visit(page.address, viewport={"width": width, "height": 800}, color_scheme=scheme)
    row = tab.locator("section[aria-labelledby=runs] tbody tr").first
    expect(row).to_contain_text("1.5000")
    log(folder / "runs" / "one", [3.0, 2.0, 1.5, 1.25])
    expect(row).to_contain_text("1.2500")
    assert tab.evaluate("charts.views().length") == 2
    assert tab.evaluate("document.querySelector('#live').state.chart.panels[0].series[0].y.at(-1)") == 1.25
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert all(message.startswith(page.address) for message in tab.seen)


def test_a_view_that_a_reader_zoomed_stays(live, visit):
    from playwright.sync_api import expect

    page, folder = live
    tab = visit(page.address)
    expect(tab.locator("#live .tools button").first).to_be_visible()
    tab.get_by_role("button", name="zoom in").click()
    before = tab.evaluate("charts.views()[0].view.x")
    log(folder / "runs" / "one", [3.0, 2.0, 1.5, 1.25])
    expect(tab.locator("section[aria-labelledby=runs] tbody tr").first).to_contain_text("1.2500")
    assert tab.evaluate("charts.views()[0].view.x") == before


def test_the_page_says_that_nobody_answers_only_while_nobody_does(live, visit):
    """Once the sentence stayed until the data were others."""
    from playwright.sync_api import expect

    page, _ = live
    tab = visit(page.address)
    state = tab.locator("#state")
    expect(state).to_contain_text("1 runs, the latest first.")
    tab.route("**/data", lambda route: route.fulfill(status=503))
    expect(state).to_contain_text("The server does not answer")
    tab.unroute("**/data")
    expect(state).to_contain_text("1 runs, the latest first.")


def test_nothing_to_watch_and_a_taken_port_are_one_line(live, tmp_path):
    page, folder = live
    with pytest.raises(ReportError, match="no metrics.jsonl"):
        LivePage(tmp_path / "none")
    with pytest.raises(ReportError, match="cannot be opened"):
        LivePage(folder, port=urlsplit(page.address).port)


def test_the_command_prints_the_address_and_ends_at_an_interrupt(tmp_path):
    log(tmp_path / "one", [3.0, 2.0])
    command = [sys.executable, "-m", "launch.watch", str(tmp_path / "one"), "--page"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert running.stdout is not None
    assert running.stdout.readline().startswith("http://127.0.0.1:")
    assert "Ctrl-C ends it" in running.stdout.readline()
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=60) == 0 and "Traceback" not in running.stdout.read()
