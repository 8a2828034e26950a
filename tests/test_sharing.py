"""Share codes: all controls there and back, and nothing gets in that may not."""

from __future__ import annotations

import ast
import base64
import json
import zlib
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from workbench.cli import commands
from workbench.controls import FIELDS, NAMES, checked, python
from workbench.sharing import LONGEST_CODE, MOST_BYTES, decode, encode
from workbench.strategies import OPTIONS

ALL: dict[str, Any] = {
    "workload": "digits-mlp",
    "strategy": "data=2,spatial=2x3",
    "compare": ["tensor=2", "pipeline=2"],
    "workers": 12,
    "threads": 1,
    "batch": 96,
    "steps": 30,
    "repeats": 5,
    "seed": 7,
    "accumulate": 4,
    "precision": "bf16",
    "schedule": "zb-h1",
    "sync_every": "8",
    "split_at": "layers.2, layers.4",
    "hidden": ["seed", "precision"],
    "locked": ["workers"],
}


def forged(content: Any, version: str = "wb1") -> str:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return f"{version}:{base64.urlsafe_b64encode(zlib.compress(text)).decode().rstrip('=')}"


def test_everything_comes_back() -> None:
    code = encode(ALL)
    assert decode(code) == ALL
    assert decode(f"  {code}\n") == ALL
    assert len(code) < 400
    assert code.removeprefix("wb1:").replace("-", "").replace("_", "").isalnum()
    assert decode(encode({})) == {}
    assert decode(encode({"seed": 0, "workload": "", "threads": None})) == {
        "workload": "",
        "seed": 0,
    }


def test_one_form_of_what_is_the_same() -> None:
    assert encode({"sync_every": 8, "strategy": " data = 2 "}) == encode(
        {"strategy": "data=2", "sync_every": "8"}
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"workers": 0}, r"workers=0 cannot be; it is a whole number from 1 to 64"),
        ({"workers": True}, "workers=True cannot be"),
        ({"workers": "2"}, "workers='2' cannot be"),
        ({"workers": 1e300}, "workers=1e\\+300 cannot be"),
        ({"seed": -1}, "seed=-1 cannot be; it is a whole number from 0"),
        ({"batch": 10**30}, "batch=1000"),
        ({"workload": "../../etc/passwd"}, "is no workload of the catalogue; there are: digits-cn"),
        ({"workload": ["digits-cnn"]}, "is no workload"),
        ({"strategy": "magic=2"}, "strategy: .*'magic' is not a strategy. There are: serial"),
        ({"strategy": "data=65"}, "needs 65 ranks, and 64 are the most"),
        ({"strategy": "data=" + "9" * 5000}, "longer than any strategy"),
        ({"strategy": 2}, "strategy: A strategy is written as text"),
        ({"compare": "data=2"}, "compare='data=2' cannot be; it is a list"),
        ({"compare": ["data=2", "x"]}, "compare: .*'x' is not a strategy"),
        ({"compare": ["data=2"] * 65}, "at most 64"),
        ({"precision": "fp4"}, "precision='fp4' is not one of its choices: 'full' or 'bf16'"),
        ({"precision": {"a": 1}}, "is neither a text nor a number"),
        ({"split_at": "a\nimport os"}, "printable"),
        ({"split_at": "a" * 1001}, "at most 1000 printable"),
        ({"hidden": ["workers", "wheels"]}, "hidden: there is no control 'wheels'; there are: wo"),
        ({"locked": {"workers": 1}}, "it is a list of at most 64 names of controls"),
        ({"__class__": 1}, "There is no control '__class__'; there are: workload"),
        ({"x" * 900: 1}, r"There is no control 'xxx.*\.\.\.;"),
    ],
)
def test_a_forged_code_names_the_field_and_what_is_allowed(
    change: dict[str, Any], says: str
) -> None:
    with pytest.raises(wb.PlanError, match=f"The share code is refused: .*{says}"):
        decode(forged({**ALL, **change}))
    with pytest.raises(wb.PlanError, match=says):
        encode({**ALL, **change})


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("", "begins with wb1:"),
        (None, "begins with wb1:"),
        ("https://example.org", "begins with wb1:"),
        (forged({}, "wb2"), "version wb2, and this workbench reads wb1"),
        ("wb1", "damaged, or was cut off"),
        ("wb1:!!", "damaged"),
        (encode(ALL)[:-8], "damaged"),
        (encode(ALL) + "AAAA", "damaged"),
        (forged(b"\xff\xfe"), "damaged"),
        (forged(b'{"seed": 1, "seed": 2}'), "damaged"),
        (forged(b'{"seed": NaN}'), "damaged"),
        (forged(b"[" * 20_000), "damaged"),
        (forged(b" " * (MOST_BYTES + 1)), "damaged"),
        (forged([1, 2]), "holds no controls"),
        ("wb1:" + "A" * (LONGEST_CODE + 1), "characters, and 8,192 are the most"),
    ],
)
def test_what_is_no_code_is_refused_in_a_sentence(code: Any, says: str) -> None:
    with pytest.raises(wb.PlanError, match=says):
        decode(code)


def test_a_bomb_is_not_inflated() -> None:
    code = forged(b" " * 4_000_000)  # fits a code of 8,192 characters
    assert len(code) < LONGEST_CODE
    with pytest.raises(wb.PlanError, match="damaged"):
        decode(code)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=40))
def test_any_text_is_a_code_or_refused(text: str) -> None:
    for code in (text, f"wb1:{text}", forged(text.encode()), forged({"split_at": text})):
        try:
            assert checked(found := decode(code)) == found
        except wb.PlanError:
            continue


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30), st.sampled_from([n for n, v in OPTIONS.items() if not v]))
def test_no_text_becomes_code_in_the_program(text: str, name: str) -> None:
    try:
        program = python({"workload": "digits-cnn", "strategy": "data=2", name: text})
    except wb.PlanError:
        return
    [compared] = [
        node
        for node in ast.walk(ast.parse(program))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "compare"
    ]
    given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in compared.keywords}
    assert given == {"strategies": ["serial", "data=2"], name: text}


def test_the_program_says_all_that_was_chosen() -> None:
    assert python(ALL) == (
        "import workbench as wb\n\n"
        'work = wb.workload("digits-mlp", batch_size=96, seed=7)\n'
        "with wb.start(workers=12, threads=1):\n"
        "    table = wb.compare(\n"
        "        work,\n"
        '        strategies=["serial", "tensor=2", "pipeline=2", "data=2,spatial=2x3"],\n'
        "        threads=1,\n        steps=30,\n        repeats=5,\n        accumulate=4,\n"
        '        precision="bf16",\n        sync_every="8",\n        schedule="zb-h1",\n'
        '        split_at="layers.2, layers.4",\n'
        "    )\nprint(table)\n"
    )
    assert "work = work.with_(batch_size=4)" in python({"batch": 4})


@pytest.mark.timeout(120)
def test_the_program_runs(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = {"workload": "digits-mlp", "strategy": "serial", "steps": 6, "repeats": 1}
    program = python({**asked, "batch": 8, "workers": 1, "threads": 1})
    names: dict[str, Any] = {}
    exec(program, names)
    assert names["table"].status == "done"
    assert [row["strategy"] for row in names["table"].rows] == ["serial"]


def test_every_name_can_be_hidden() -> None:
    assert decode(encode({"hidden": NAMES}))["hidden"] == list(NAMES)
    assert set(FIELDS) == {*NAMES, "hidden", "locked"}


def test_the_command_makes_and_reads_codes() -> None:
    made = CliRunner().invoke(
        commands, ["share", "encode", "digits-cnn", "data=2", "tensor=2", "--steps", "9",
                   "--option", "precision=bf16", "--hide", "seed"],
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    controls = {"workload": "digits-cnn", "strategy": "data=2", "compare": ["tensor=2"],
                "steps": 9, "precision": "bf16", "hidden": ["seed"]}  # fmt: skip
    assert decode(made.output.strip()) == controls
    read = CliRunner().invoke(commands, ["share", "decode", made.output.strip(), "--json"])
    assert json.loads(read.output)["controls"] == controls
    shown = CliRunner().invoke(commands, ["share", "decode", made.output.strip(), "--python"])
    assert shown.output == python(controls)
    refused = CliRunner().invoke(commands, ["share", "decode", forged({"workers": 0})])
    assert refused.exit_code == 2
    assert "workers=0 cannot be" in refused.output


def test_sweep_and_train_have_lines_of_python() -> None:
    asked = {"workload": "digits-mlp", "strategy": "data=2", "steps": 9, "repeats": 2, "workers": 4}
    sweep, train = (python(asked, kind) for kind in ("sweep", "train"))
    for program in (sweep, train):
        compile(program, "program", "exec")
    assert "    table = wb.sweep(\n        work,\n        workers=4,\n        steps=9," in sweep
    assert '    run = wb.run(\n        work,\n        "data=2",\n        steps=9,\n    )' in train
    assert "    run.wait()\n" in train
