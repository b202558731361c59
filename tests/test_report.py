"""The recorder under a real kernel, what may pass into a page, the page, the leaderboard."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import struct
import subprocess
import textwrap
import threading
from html import escape
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
from IPython.core.events import EventManager, available_events
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from crypto_ml import recorder, report, show
from crypto_ml.settings import RunError

HOSTILE = "BTC<script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>"
PIXEL = base64.b64encode(
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + struct.pack(">II", 1008, 460) + bytes(40)
).decode()


class Page(HTMLParser):
    """Elements of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def assert_self_contained(html: str, scripts: int = 0) -> Page:
    """No element, attribute or style of the page can load or run anything from elsewhere."""
    page = Page(html)
    loading = {
        "link",
        "iframe",
        "object",
        "embed",
        "base",
        "audio",
        "video",
        "source",
        "form",
        "svg",
    }
    assert not loading & {tag for tag, _ in page.elements}
    assert len(page.all("script")) == scripts
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert not {"srcset", "background", "poster", "action", "style"} & set(attributes)
        assert (attributes.get("src") or "data:").startswith(
            "data:image/"[: 5 + 6 * ("src" in attributes)]
        )
        if tag == "a":
            assert re.match(r"#|\./|https?://|[\w-]", attributes.get("href") or "#")
            assert not (attributes.get("href") or "").lower().startswith(("javascript", "data"))
    assert "url(" not in html and "@import" not in html
    policy = next(meta for meta in page.all("meta") if "http-equiv" in meta)["content"]
    assert policy and policy.startswith("default-src 'none'")
    assert "http" not in policy and "unsafe-eval" not in policy
    assert ("script-src" in policy) is bool(scripts) and "script-src 'unsafe-inline'" not in policy
    return page


# --- the recorder -----------------------------------------------------------------------------


def write_template(path: Path, *sources: str) -> Path:
    kernel = {"name": "python3", "display_name": "python3", "language": "python"}
    first = """
        from pathlib import Path
        import nbformat
        from IPython.display import clear_output, display
        from crypto_ml.recorder import NotebookRecorder
        recorder = NotebookRecorder(Path(template)).start()
        print("from the first cell on")
        def save(result):
            if result.error_in_exec or result.error_before_exec:
                nbformat.write(recorder.notebook(), Path(template).with_name("failed.ipynb"))
        get_ipython().events.register("post_run_cell", save)
    """
    last = 'nbformat.write(recorder.notebook(), Path(template).with_name("recorded.ipynb"))'
    cells = [
        new_markdown_cell("# A run"),
        new_code_cell("template = None\ndays = 10", metadata={"tags": ["parameters"]}),
        new_code_cell(textwrap.dedent(first).strip()),
        *(new_code_cell(textwrap.dedent(source).strip()) for source in sources),
        new_code_cell(last, metadata={"tags": ["hide-report"]}),
        new_markdown_cell("## The end"),
    ]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def run_template(path: Path) -> nbformat.NotebookNode:
    return papermill.execute_notebook(
        path,
        path.with_name("out.ipynb"),
        parameters={"template": str(path), "days": 360},
        kernel_name="python3",
        progress_bar=False,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
    )


def outputs(notebook: nbformat.NotebookNode) -> list[list[nbformat.NotebookNode]]:
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def joined(outputs: list[nbformat.NotebookNode]) -> list[object]:
    """Outputs with each stream in one piece: a client gets the two streams on separate ways."""
    names = ("stdout", "stderr")
    texts = ["".join(o.text for o in outputs if o.get("name") == name) for name in names]
    return [*texts, *(output for output in outputs if output.output_type != "stream")]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    path = write_template(
        tmp_path_factory.mktemp("recorder") / "train.ipynb",
        "print('one'); print('two')\nimport sys; print('three', file=sys.stderr); print('four')",
        "days * 24",
        "days;",
        "display({'text/html': '<b>x</b>'}, raw=True, metadata={'a': {'b': 1}})\n'y'",
        "handle = display('first', display_id=True); print('between'); handle.update('second')",
        "print('gone'); display('gone'); clear_output(); print('kept')",
        "print('gone too'); clear_output(wait=True); print('kept')",
        "import subprocess, sys, time\n"
        "subprocess.run([sys.executable, '-c', 'print(\"from a child\")']); time.sleep(0.3)",
        "for step in range(3): print(f'{step} of 3', end='\\r')",
        "get_ipython().run_line_magic('matplotlib', 'inline')\n"
        "import matplotlib.pyplot as plt\n_ = plt.plot([1, 2])",
        "print('same source')",
        "print('same source')",
        "",
    )
    executed = run_template(path)
    return nbformat.read(path.with_name("recorded.ipynb"), 4), executed, path


def test_recorded_outputs_equal_the_executed_ones(recorded: tuple[Any, Any, Path]) -> None:
    mine, theirs, _ = recorded
    nbformat.validate(mine)
    assert [c.source.rstrip() for c in mine.cells] == [c.source.rstrip() for c in theirs.cells]
    for one, other in zip(mine.cells[:-2], theirs.cells[:-2], strict=True):
        assert joined(one.get("outputs", [])) == joined(other.get("outputs", [])), one.source
        assert one.get("execution_count") == other.get("execution_count")
    assert sum(map(len, outputs(mine))) >= 14
    assert "image/png" in outputs(mine)[12][0].data


def test_recorded_cells_are_the_templates(recorded: tuple[Any, Any, Path]) -> None:
    mine, _, path = recorded
    template = nbformat.read(path, 4)
    injected = [cell for cell in mine.cells if cell.metadata.get("tags") == ["injected-parameters"]]
    assert len(injected) == 1 and "days = 360" in injected[0].source
    rest = [cell for cell in mine.cells if cell is not injected[0]]
    assert [(cell.id, cell.metadata) for cell in rest] == [
        (c.id, c.metadata) for c in template.cells
    ]
    assert mine.cells.index(injected[0]) == 2
    assert "time" not in json.dumps(mine.metadata)


def test_same_run_same_notebook(recorded: tuple[Any, Any, Path]) -> None:
    _, _, path = recorded
    first = path.with_name("recorded.ipynb").read_bytes()
    run_template(path)
    assert path.with_name("recorded.ipynb").read_bytes() == first


@pytest.mark.parametrize(
    ("source", "name", "said"),
    [
        ("print('before')\nraise ValueError('no <b>bars</b>')", "ValueError", "no <b>bars</b>"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", ""),
        ("if True print('x')", "SyntaxError", "invalid syntax|expected ':'"),
    ],
)
def test_a_failing_cell_is_recorded_with_its_traceback(
    tmp_path: Path, source: str, name: str, said: str
) -> None:
    path = write_template(tmp_path / "train.ipynb", source, "print('never')")
    with pytest.raises((papermill.PapermillExecutionError, KeyboardInterrupt)):
        run_template(path)
    notebook = nbformat.read(path.with_name("failed.ipynb"), 4)
    failed = next(cell for cell in notebook.cells if cell.source == source)
    error = failed.outputs[-1]
    assert error.output_type == "error" and error.ename == name
    assert re.search(said, error.evalue) and name in "".join(error.traceback)
    never = next(cell for cell in notebook.cells if cell.source == "print('never')")
    assert never.outputs == [] and never.execution_count is None
    assert not path.with_name("recorded.ipynb").exists()
    html = report.render_html(notebook, "failed")
    assert_self_contained(html)
    assert 'class="error"' in html and "\x1b" not in html


class FakeKernel:
    """As much of a kernel as the recorder touches, in this process."""

    def __init__(self, history: list[str]) -> None:
        self.events = EventManager(self, available_events)
        self.hooks: list[Any] = []
        hook = SimpleNamespace(register_hook=self.hooks.append, unregister_hook=self.hooks.remove)
        self.display_pub = self.displayhook = hook
        self.history_manager = SimpleNamespace(input_hist_raw=["", *history])
        self.execution_count = len(history) + 1
        self.InteractiveTB = SimpleNamespace(
            structured_traceback=lambda kind, error, tb, tb_offset: [f"{kind.__name__}: {error}"]
        )

    def run(self, source: str, *messages: tuple[str, dict[str, Any]], error: Any = None) -> None:
        self.execution_count += 1
        self.events.trigger("pre_run_cell", SimpleNamespace(raw_cell=source, store_history=True))
        for kind, content in messages:
            message = {"header": {"msg_type": kind}, "content": content}
            assert self.hooks[0](message) is message
        done = SimpleNamespace(error_before_exec=None, error_in_exec=error)
        self.events.trigger("post_run_cell", done)


def shown(text: str, name: str = "") -> dict[str, Any]:
    transient = {"display_id": name} if name else {}
    return {"data": {"text/plain": text}, "metadata": {}, "transient": transient}


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    fake = FakeKernel(["a = 1", "start"])
    heard: list[str] = []
    streams = [
        SimpleNamespace(name=name, echo=before, heard=heard)
        for name, before in (
            ("stdout", None),
            ("stderr", SimpleNamespace(write=heard.append, flush=lambda: heard.append("flushed"))),
        )
    ]
    monkeypatch.setattr(recorder, "get_ipython", lambda: fake)
    monkeypatch.setattr(recorder, "sys", SimpleNamespace(stdout=streams[0], stderr=streams[1]))
    monkeypatch.setattr(recorder.NotebookRecorder, "_running", None)
    return fake


def start(tmp_path: Path, *sources: str) -> recorder.NotebookRecorder:
    path = tmp_path / "template.ipynb"
    old = new_output("stream", text="an old output")
    cells = [new_code_cell(source, outputs=[old], execution_count=9) for source in sources]
    nbformat.write(new_notebook(cells=[new_markdown_cell("text"), *cells]), path)
    return recorder.NotebookRecorder(path).start()


def test_cells_are_matched_in_order_again_and_besides(tmp_path: Path, kernel: FakeKernel) -> None:
    mine = start(tmp_path, "a = 1", "start", "same", "same", "never", "last")
    kernel.run("same", ("display_data", shown("first")))
    kernel.run("same", ("display_data", shown("second")))
    kernel.run("an added cell", ("execute_result", {**shown("third"), "execution_count": 5}))
    kernel.run("last", ("display_data", shown("fourth")))
    kernel.run("a = 1", ("display_data", shown("again")))
    cells = mine.notebook().cells[1:]
    assert [cell.source for cell in cells] == [
        *("a = 1", "start", "same", "same", "an added cell", "never", "last")
    ]
    texts = [[o.data["text/plain"] for o in cell.outputs] for cell in cells]
    assert texts == [["again"], [], ["first"], ["second"], ["third"], [], ["fourth"]]
    assert [cell.execution_count for cell in cells] == [7, 2, 3, 4, 5, None, 6]
    assert cells[4].metadata.tags == []


def test_displays_are_updated_and_cleared(tmp_path: Path, kernel: FakeKernel) -> None:
    mine = start(tmp_path, "a = 1", "start", "cell", "cleared", "waits")
    update = {**shown("new", "id"), "metadata": {"x": 1}}
    kernel.run("cell", ("display_data", shown("old", "id")), ("update_display_data", update))
    kernel.run("cleared", ("display_data", shown("x")), ("clear_output", {"wait": False}))
    clear = ("clear_output", {"wait": True})
    kernel.run("waits", ("display_data", shown("x")), clear, ("display_data", shown("y")))
    kernel.run("else", ("comm_open", {"data": {}}))
    cells = mine.notebook().cells[3:]
    assert cells[0].outputs[0].data["text/plain"] == "new" and cells[0].outputs[0].metadata.x == 1
    assert cells[1].outputs == [] and cells[-1].outputs == []
    assert [output.data["text/plain"] for output in cells[2].outputs] == ["y"]


def test_streams_are_recorded_and_passed_on(tmp_path: Path, kernel: FakeKernel) -> None:
    mine = start(tmp_path, "a = 1", "start")
    out, err = recorder.sys.stdout, recorder.sys.stderr
    for stream, text in ((out, "a"), (out, "b"), (err, "c"), (out, "d")):
        stream.echo.write(text)
        stream.echo.flush()
    streams = [(each.name, each.text) for each in mine.notebook().cells[2].outputs]
    assert streams == [("stdout", "ab"), ("stderr", "c"), ("stdout", "d")]
    assert err.heard == ["c", "flushed"]


def test_errors_are_recorded_and_stop_ends_it(tmp_path: Path, kernel: FakeKernel) -> None:
    mine = start(tmp_path, "a = 1", "start")
    kernel.run("broken", error=ValueError("no bars"))
    recorder.sys.stderr.echo = "somebody else's"
    mine.stop()
    mine.stop()
    assert kernel.hooks == [] and recorder.sys.stdout.echo is None
    assert recorder.sys.stderr.echo == "somebody else's"
    kernel.run("after")
    cells = mine.notebook().cells
    assert cells[-1].source == "broken"
    assert cells[-1].outputs[0].traceback == ["ValueError: no bars"]


def test_a_second_recorder_ends_the_first(tmp_path: Path, kernel: FakeKernel) -> None:
    first = start(tmp_path, "a = 1", "start")
    second = start(tmp_path, "a = 1", "start")
    kernel.run("more", ("display_data", shown("x")))
    recorder.sys.stdout.echo.write("once")
    assert len(first.notebook().cells) == 3 and len(second.notebook().cells) == 4
    assert second.notebook().cells[-1].outputs[-1].text == "once"
    assert len(kernel.hooks) == 2


def test_a_notebook_given_out_does_not_change_later(tmp_path: Path, kernel: FakeKernel) -> None:
    mine = start(tmp_path, "a = 1", "start")
    recorder.sys.stdout.echo.write("sooner")
    before = mine.notebook()
    recorder.sys.stdout.echo.write(", later")
    assert before.cells[2].outputs[0].text == "sooner"
    assert mine.notebook().cells[2].outputs[0].text == "sooner, later"


def test_an_empty_kernel_has_nothing_to_record_into(tmp_path: Path, kernel: FakeKernel) -> None:
    kernel.history_manager.input_hist_raw = [""]
    mine = start(tmp_path, "a = 1")
    recorder.sys.stdout.echo.write("nobody's")
    kernel.hooks[0]({"header": {"msg_type": "display_data"}, "content": shown("x")})
    assert outputs(mine.notebook()) == [[]]


def test_what_cannot_be_recorded_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match=r"nothing was recorded. Call start\(\)"):
        recorder.NotebookRecorder(tmp_path).notebook()
    for shell in (None, SimpleNamespace(), SimpleNamespace(displayhook=object())):
        monkeypatch.setattr(recorder, "get_ipython", lambda shell=shell: shell)
        with pytest.raises(RunError, match=r"no Jupyter kernel.*papermill"):
            recorder.NotebookRecorder(tmp_path).start()


def test_a_missing_or_broken_template_is_refused(tmp_path: Path, kernel: FakeKernel) -> None:
    (tmp_path / "broken.ipynb").write_text("{")
    for name in ("missing.ipynb", "broken.ipynb"):
        with pytest.raises(RunError, match=name):
            recorder.NotebookRecorder(tmp_path / name).start()
    assert kernel.hooks == []


# --- showing ----------------------------------------------------------------------------------


@pytest.fixture
def displayed(monkeypatch: pytest.MonkeyPatch) -> list[nbformat.NotebookNode]:
    kept: list[nbformat.NotebookNode] = []
    monkeypatch.setattr(show, "get_ipython", object)

    def publish(data: dict[str, str], metadata: dict[str, Any]) -> None:
        kept.append(new_output("display_data", data, metadata=metadata))

    monkeypatch.setattr(show, "publish_display_data", publish)
    return kept


def make_figure(alt: str = "a line that rises") -> Figure:
    figure = plt.figure()
    figure.add_subplot().plot([1, 2])
    figure.set_label(alt)
    return figure


def test_show_figure_closes_and_describes(displayed: list[nbformat.NotebookNode]) -> None:
    figure = make_figure()
    show.show_figure(figure, "A *line* of <b>prices</b>.")
    assert not plt.fignum_exists(figure.number)
    picture, caption = displayed
    assert picture.metadata["image/png"]["alt"] == "a line that rises"
    assert picture.metadata["image/png"]["width"] == picture.metadata.crypto_ml.get("width", 460)
    assert caption.data["text/markdown"] == r"*A \*line\* of \<b\>prices\</b\>.*"
    html = report.output_html(picture) + report.output_html(caption)
    page = Page(html)
    assert page.all("img")[0]["alt"] == "a line that rises"
    assert html.count("figcaption") == 2 and "A *line* of <b>prices</b>." in page.text
    assert base64.b64decode(str(page.all("img")[0]["src"]).split(",")[1])[:4] == b"\x89PNG"
    with pytest.raises(RunError, match="no alternative text"):
        show.show_figure(Figure(), "x")


def test_show_table_formats_aligns_and_escapes(displayed: list[nbformat.NotebookNode]) -> None:
    table = pd.DataFrame(
        {
            "share": [0.25, np.nan],
            "bars": [12000, -5],
            "score": [show.format_interval(0.5, 0.4, 0.6), "–"],
            "mcc": [-0.5, 0.25],
            "on": [True, False],
            "when": pd.to_datetime(["2024-01-01", None], utc=True),
            HOSTILE: ["<b>", None],
            "none": [None, None],
            "twice": [1, 2],
            "text": ["0.5 [-0.1, 0.6]", "-1"],
            "date": ["2024-01-02", "-"],
        },
        index=pd.Index(["ensemble", HOSTILE], name="predictor"),
    )
    formats = {"share": ".1%", "twice": lambda value: f"{2 * value}<"}
    show.show_table(table, f"On {HOSTILE}", formats, highlight=["ensemble"])
    html = report.output_html(displayed[0])
    page = assert_self_contained_fragment(html)
    assert page.text.count(HOSTILE) == 3
    for text in ("25.0%", "12,000", "−5", "yes", "no", "2024-01-01 00:00", "–", "4<"):
        assert text in page.text, text
    right = [
        name
        for name in ("share", "bars", "score", "mcc")
        if f'class="number">{name}<' in html.replace(' scope="col"', "")
    ]
    assert right == ["share", "bars", "score", "mcc"]
    assert 'class="number">none' not in html and 'class="number">twice' not in html
    assert "0.500 <small>[0.400, 0.600]</small>" in html
    assert "0.5 <small>[−0.1, 0.6]</small>" in html and ">−1<" in html and ">2024-01-02<" in html
    assert html.count('class="strong"') == 1
    assert page.all("th")[0]["scope"] == "col" and {"scope": "row"} in page.all("th")
    assert displayed[0].data["text/plain"].startswith("On BTC")


def assert_self_contained_fragment(html: str) -> Page:
    page = Page(html)
    assert not {"script", "img", "style", "link", "iframe"} & {tag for tag, _ in page.elements}
    return page


def test_table_without_index_or_caption(displayed: list[nbformat.NotebookNode]) -> None:
    show.show_table(pd.DataFrame({"a": [1]}), "", index=False)
    html = report.output_html(displayed[0])
    assert "figcaption" not in html and 'scope="row"' not in html and 'class="box"' in html
    show.show_table(pd.DataFrame(columns=["a"]), "No rows.")
    assert "<tbody></tbody>" in report.output_html(displayed[1])
    with pytest.raises(RunError, match="columns b, c, which the table lacks; it has a"):
        show.show_table(pd.DataFrame({"a": [1]}), "x", {"b": "", "c": ""})


def test_captions_may_hold_code(displayed: list[nbformat.NotebookNode]) -> None:
    show.show_figure(make_figure(), "What `<majority>` scores.")
    assert "What <code>&lt;majority&gt;</code> scores." in report.output_html(displayed[0])
    twins = pd.DataFrame([[1, pd.NA]], columns=["same", "same"])
    show.show_table(twins, "What `a_b` is.")
    html = report.output_html(displayed[2])
    assert "<figcaption>What <code>a_b</code> is.</figcaption>" in html and ">–<" in html


def test_intervals_are_written() -> None:
    assert show.format_interval(-0.0314, -0.1, 0.05, 2) == "−0.03 [−0.10, 0.05]"
    assert show.format_interval(np.nan, np.nan, np.nan) == "–"


@pytest.mark.parametrize("outcome", ["edge", "worse than chance", "no evidence of an edge"])
def test_verdict_has_words_sign_and_colour(
    displayed: list[nbformat.NotebookNode], outcome: str
) -> None:
    show.show_verdict(outcome, f"On {HOSTILE}.", {f"market {HOSTILE}": HOSTILE})
    html = report.output_html(displayed[0])
    page = assert_self_contained_fragment(html)
    assert outcome.capitalize() in page.text and page.text.count(HOSTILE) == 3
    css = Path(report.__file__).with_name("report.css").read_text()
    assert re.search(r"verdict-\w+", html[html.index("verdict-") :])[0] in css
    with pytest.raises(RunError, match="no verdict is called 'maybe'"):
        show.show_verdict("maybe", "")


def test_verdict_without_facts_and_note(displayed: list[nbformat.NotebookNode]) -> None:
    show.show_verdict("edge", "Yes.")
    show.show_note(f"**Costs** on {HOSTILE} and `code`")
    first, second = map(report.output_html, displayed)
    assert "<dl>" not in first
    assert "<strong>Costs</strong>" in second
    assert "<script>alert(1)</script>" in assert_self_contained_fragment(second).text


def test_without_a_kernel_text_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "get_ipython", lambda: None)
    show.show_verdict("edge", "Yes.", {"rows": "5"})
    show.show_table(pd.DataFrame({"a": [1]}), "A table.")
    assert "▲ Edge: Yes.\nrows: 5" in (text := capsys.readouterr().out) and "A table." in text


# --- the page ---------------------------------------------------------------------------------


def make_notebook() -> nbformat.NotebookNode:
    hostile_html = (
        f"<table onclick='x()'><caption>{escape(HOSTILE)}</caption>"
        "<tr><td style='background:url(http://e)'>1"
        "<script>fetch('http://e')</script><svg onload=x()></svg><iframe src='http://e'></iframe>"
        "<a href='javascript:x()'>link</a><style>td {color: red}</style></td></tr></table>"
    )
    table = new_output(
        "display_data",
        {"text/html": hostile_html},
        metadata={"crypto_ml": {"kind": "table", "caption": HOSTILE}},
    )
    image = new_output("display_data", {"image/png": PIXEL, "text/plain": f'a "line" {HOSTILE}'})
    return new_notebook(
        cells=[
            new_markdown_cell("# Train"),
            new_code_cell("a = 1", metadata={"tags": ["parameters"]}),
            new_markdown_cell("# Setup\nof use to few", metadata={"tags": ["hide-report"]}),
            new_code_cell(
                "print('setup')",
                outputs=[new_output("stream", text="setup\n")],
                metadata={"tags": ["hide-report"]},
            ),
            new_markdown_cell(
                f"## Data & <more>\nOn {HOSTILE} ![x](http://evil.example/y.png)\n\n"
                "|a|b|\n|-|-|\n|1|2|"
            ),
            new_code_cell("show()", outputs=[table, image]),
            new_markdown_cell("### Detail"),
            new_code_cell("", outputs=[new_output("execute_result", {"text/plain": HOSTILE})]),
            new_markdown_cell("# Scores"),
            new_markdown_cell("## Data & <more>"),
            nbformat.v4.new_raw_cell("raw"),
            new_code_cell(
                "verdict()",
                outputs=[new_output("stream", text="first\n")],
                metadata={"tags": ["summary"]},
            ),
        ]
    )


def render(notebook: nbformat.NotebookNode | None = None) -> str:
    return report.render_html(
        notebook or make_notebook(), f"{HOSTILE} 1h", subtitle=HOSTILE, footer=HOSTILE
    )


def test_page_is_self_contained_and_everything_foreign_is_text() -> None:
    html = render()
    page = assert_self_contained(html)
    assert page.elements[0] == ("html", {"lang": "en"})
    assert f"{HOSTILE} 1h" in page.text
    assert all(image["alt"] for image in page.all("img"))
    assert page.all("img")[0]["alt"] == f'a "line" {HOSTILE}'
    assert (page.all("img")[0]["width"], page.all("img")[0]["height"]) == ("504", "230")
    assert "fetch" not in html and "color: red}" not in html
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all(
        "meta"
    )
    assert html == render(), "the same notebook gives the same page"


def test_sections_are_numbered_and_listed() -> None:
    html = render()
    page = Page(html)
    anchors = [heading["id"] for heading in page.all("h2")]
    assert anchors == ["section-1-data-more", "section-2-scores", "section-3-data-more"]
    links = [str(link["href"]) for link in page.all("a") if str(link.get("href")).startswith("#")]
    assert links == [f"#{anchor}" for anchor in anchors]
    assert len(page.all("h1")) == 1 and "Train" not in page.text
    assert len(page.all("h3")) == 1


def test_summary_first_and_setup_with_the_code_only() -> None:
    html = render()
    assert html.index("first") < html.index("<nav") < html.index('id="section-1')
    for hidden in ("of use to few", ">setup</pre>"):
        before = html[: html.index(hidden)]
        opened = before.rfind('<div class="code">')
        assert opened > before.rfind("</div>"), hidden
    assert re.search(r"\.code \{ display: none; \}", html)
    assert "#show-code:checked ~ main .code { display: block; }" in html


def test_an_error_in_a_setup_cell_is_shown() -> None:
    error = new_output("error", ename="E", evalue="<no>", traceback=["\x1b[31mE\x1b[0m: <no>"])
    cell = new_code_cell("x", outputs=[error], metadata={"tags": ["hide-report"]})
    html = report.render_html(new_notebook(cells=[cell]), "t")
    assert '</div>\n<pre class="error">E: &lt;no&gt;</pre>' in html
    bare = new_output("error", ename="E", evalue="x", traceback=[])
    assert report.output_html(bare) == '<pre class="error">E: x</pre>'


def test_printed_text_is_tidied_and_folded() -> None:
    progress = new_output("stream", text="\x1b[1m 1%\r 2%\r 3%\ndone\n")
    assert report.output_html(progress) == '<pre class="stream"> 3%\ndone</pre>'
    long = report.output_html(new_output("stream", text="<x>\n" * 13))
    assert "<summary>Printed text, 13 lines</summary>" in long and "&lt;x&gt;" in long
    assert report.output_html(new_output("stream", text="\n")) == ""


def test_other_kinds_of_output() -> None:
    def html(data: dict[str, str]) -> str:
        return report.output_html(new_output("display_data", data))

    assert html({"text/html": "<b>x</b><script>y</script>"}) == "<b>x</b>"
    assert 'src="data:image/jpeg;base64,AAAA"' in html({"image/jpeg": "AAAA\n"})
    assert 'alt="Picture without a description"' in html({"image/jpeg": "AAAA"})
    assert html({"text/plain": "<x>"}) == "<pre>&lt;x&gt;</pre>"
    assert "application/javascript" in html({"application/javascript": "alert(1)"})
    assert "alert" not in html({"application/javascript": "alert(1)"})


def test_tables_scroll_in_their_own_box() -> None:
    page = Page(render())
    boxes = [each for each in page.all("div") if each.get("class") == "box"]
    assert len(boxes) == len(page.all("table")) == 2
    assert all(box["tabindex"] == "0" and box["role"] == "region" for box in boxes)


def test_an_empty_notebook_is_a_page() -> None:
    page = assert_self_contained(report.render_html(new_notebook(), "Nothing"))
    assert not page.all("nav") and not page.all("footer")


def test_write_report_leaves_two_files_and_nothing_else(tmp_path: Path) -> None:
    notebook, page = report.write_report(make_notebook(), tmp_path, "A run")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["report.html", "report.ipynb"]
    nbformat.validate(nbformat.read(notebook, 4))
    assert page.read_text("utf-8") == report.render_html(make_notebook(), "A run")


# --- the leaderboard --------------------------------------------------------------------------

RUNS: list[dict[str, object]] = [
    {
        "run": f"2024061{number}-101500-{HOSTILE}",
        "created": f"2024-06-1{number} 10:15",
        "status": "succeeded",
        "verdict": verdict,
        "market": market,
        "label": "threshold",
        "directional_auc": value,
        "directional_auc_low": value - 0.02,
        "directional_auc_high": value + 0.02,
        "roc_auc": 0.6 - number / 100,
        "report": f"2024061{number}/report.html",
    }
    for number, verdict, market, value in (
        (1, "edge", "b market", 0.55),
        (2, "worse than chance", "A market", 0.45),
        (3, "no evidence of an edge", HOSTILE, 0.5),
    )
] + [
    {"run": "broken", "status": "failed", "directional_auc": None, "roc_auc": float("nan")},
    {"run": "killed", "status": "interrupted", "report": "javascript:alert(1)"},
]


def test_leaderboard_is_safe_and_its_script_is_admitted_by_hash(tmp_path: Path) -> None:
    html = report.render_leaderboard(RUNS, tmp_path / "index.html").read_text("utf-8")
    page = assert_self_contained(html, scripts=1)
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)
    assert script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html
    assert page.text.count(HOSTILE) == 4
    links = [link["href"] for link in page.all("a")]
    assert links[0] == "./20240613/report.html" and links[-1] == "./javascript%3Aalert%281%29"
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_leaderboard_sorts_by_what_it_says(tmp_path: Path) -> None:
    html = report.render_leaderboard(RUNS, tmp_path / "index.html").read_text("utf-8")
    page = Page(html)
    heads = page.all("th")
    assert [head["aria-sort"] for head in heads] == ["descending", *["none"] * 6]
    assert len(page.all("button")) == len(heads) == 7
    cells = [cell["data-sort"] for cell in page.all("td")]
    lines = [cells[place : place + 7] for place in range(0, len(cells), 7)]
    assert [line[0] for line in lines] == [
        "2024-06-13 10:15",
        "2024-06-12 10:15",
        "2024-06-11 10:15",
        "",
        "",
    ]
    assert [line[2] for line in lines] == ["0.5", "0.45", "0.55", "", ""]
    assert [line[1] for line in lines][3:] == ["failed", "interrupted"]
    assert "0.480 to 0.520" in page.text and "▲ edge" in page.text


def test_an_empty_leaderboard_says_what_to_do(tmp_path: Path) -> None:
    html = report.render_leaderboard([], tmp_path / "index.html").read_text("utf-8")
    page = assert_self_contained(html.replace("script-src", "x-src"))
    assert "crypto-ml train" in page.text and not page.all("table")


def test_a_row_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"row 1 .* no run and no status"):
        report.render_leaderboard([RUNS[0], {}], tmp_path / "index.html")
    assert not list(tmp_path.iterdir())


# --- in a browser -----------------------------------------------------------------------------

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


def browse(page: str, folder: Path) -> str:
    """Load a page in headless Chromium and give the text that its body has in the end."""
    (folder / "page.html").write_text(page, "utf-8")
    flags = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-sync", "--disable-background-networking", "--disable-component-update"),
        *("--virtual-time-budget=4000", "--dump-dom", f"--user-data-dir={folder / 'profile'}"),
        *("--window-size=1280,900", (folder / "page.html").as_uri()),
    ]
    done = subprocess.run(
        [str(CHROMIUM), *flags], capture_output=True, text=True, timeout=90, check=True
    )
    return done.stdout


@pytest.fixture
def server():
    """Address of a server on this machine, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listener.server_port}", asked
    listener.shutdown()
    listener.server_close()


@needs_chromium
def test_the_page_asks_the_network_for_nothing(
    tmp_path: Path, server: tuple[str, list[str]]
) -> None:
    address, asked = server
    attack = (
        f"<img src='{address}/image'><script>fetch('{address}/script')</script>"
        f"<link rel=stylesheet href='{address}/style'><iframe src='{address}/frame'></iframe>"
        f"<div style='background: url({address}/background)'>x</div>"
    )
    output = new_output("display_data", {"text/html": attack, "text/markdown": attack})
    notebook = new_notebook(cells=[new_markdown_cell(attack), new_code_cell("x", outputs=[output])])
    html = report.render_html(notebook, attack)
    browse(html, tmp_path)
    assert asked == []
    slipped = html.replace("</main>", f"{attack}</main>")
    browse(slipped, tmp_path)
    assert asked == [], "the Content-Security-Policy stops what the sanitizer would miss"
    browse(re.sub(r"<meta http-equiv[^>]*>", "", slipped), tmp_path)
    assert {"/image", "/script"} <= set(asked), "without the policy the attack works"


@needs_chromium
def test_width_of_a_phone_and_sorting(tmp_path: Path) -> None:
    wide = pd.DataFrame({f"column {number}": ["0.512 [0.498, 0.526]"] * 3 for number in range(12)})
    table = new_output("display_data", {"text/html": show.table_html(wide, "wide")})
    long = new_markdown_cell(f"## {'long' * 30}\n{'word' * 60} `{'code' * 40}`\n\n    {'pre' * 90}")
    image = new_output("display_data", {"image/png": PIXEL, "text/plain": "x"})
    code = new_code_cell("x = 1  # " + "y" * 300, outputs=[table, image])
    error = new_code_cell(
        "z", outputs=[new_output("error", ename="E", evalue="e" * 500, traceback=[])]
    )
    html = report.render_html(
        new_notebook(cells=[long, code, error]), "title" * 30, footer="f" * 300
    )
    html = html.replace('id="show-code"', 'id="show-code" checked')
    board = report.render_leaderboard(RUNS, tmp_path / "index.html").read_text("utf-8")
    frames = "".join(
        f'<iframe width="{width}" height="900" srcdoc="{escape(page)}"></iframe>'
        for width, page in ((390, html), (1280, html), (390, board))
    )
    script = """
        addEventListener("load", () => {
          const pages = [...document.querySelectorAll("iframe")].map(f => f.contentDocument);
          const roots = pages.map(page => page.documentElement);
          const widths = roots.map(root => [root.scrollWidth, root.clientWidth]);
          const board = pages[2], orders = {};
          const steps = [
            ["market", 4, 1], ["score", 2, 1], ["up", 2, 1], ["new", 0, 1], ["old", 0, 1],
          ];
          for (const [name, column, clicks] of steps) {
            for (let i = 0; i < clicks; i++) board.querySelectorAll("th button")[column].click();
            const cells = [...board.querySelectorAll(`tbody td:nth-child(${column + 1})`)];
            orders[name] = cells.map(cell => cell.dataset.sort);
            orders[name].push(board.querySelectorAll("th")[column].getAttribute("aria-sort"));
          }
          document.body.innerHTML = "";
          document.body.textContent = "RESULT" + JSON.stringify({ widths, orders }) + "END";
        });
    """
    dump = browse(f"<!DOCTYPE html><body><script>{script}</script>{frames}</body>", tmp_path)
    found = re.search(r"RESULT(.*?)END", dump[dump.index("<body>") :], re.DOTALL)
    assert found
    result = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    for scroll, client in result["widths"]:
        assert scroll <= client, f"the page is {scroll} px wide in a window of {client} px"
    market = [each[:8] for each in result["orders"]["market"]]
    assert market == ["a market", "b market", "btc<scri", "", "", "ascendin"]
    assert result["orders"]["score"] == ["0.55", "0.5", "0.45", "", "", "descending"]
    assert result["orders"]["up"] == ["0.45", "0.5", "0.55", "", "", "ascending"]
    assert result["orders"]["new"][-1] == "ascending"
    assert result["orders"]["old"][-1] == "descending"
