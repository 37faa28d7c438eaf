"""The manifest: what is written is read, and everything that does not hang together is refused in one line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tiny_bundles
from quorate.cascade import Policy, StagePolicy
from quorate.runtime import manifest as module
from quorate.runtime.manifest import DEEPEST, LARGEST, MOST, BundleError, File, Manifest, digest, schema
from quorate.runtime.program import Port

pytestmark = pytest.mark.deciding
Data = dict[str, Any]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A first stage that writes what the second reads; three classes."""
    path = tmp_path_factory.mktemp("manifest") / "bundle"
    return tiny_bundles.bundle(path, tiny_bundles.chained(), classes=("a", "b", "ü"), provenance={"by": "test", "n": 1, "x": 0.1})


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return tiny_bundles.bundle(tmp_path_factory.mktemp("manifest") / "sparse", [tiny_bundles.ticket()])


@pytest.fixture
def data(written: Manifest) -> Data:
    return written.to_dict()


def text(data: Data) -> str:
    """The manifest's text with the digest made right."""
    return json.dumps(data | {"digest": digest(data)})


def refused(data: Data, why: str) -> None:
    with pytest.raises(BundleError, match=why) as error:
        Manifest.from_json(text(data), "b/manifest.json")
    said = str(error.value)
    assert said.startswith("b/manifest.json")
    assert "\n" not in said
    assert len(said) < 600


def test_what_is_written_is_read(written: Manifest, sparse: Manifest) -> None:
    for manifest in (written, sparse):
        found = Manifest.from_json(manifest.to_json())
        assert found == manifest
        assert found.to_json() == manifest.to_json()
        assert found.digest == manifest.digest == json.loads(manifest.to_json())["digest"]
        assert Manifest.from_json(manifest.to_json().encode()) == manifest
    assert sparse.stages[0].scattered == {"w": (1, 6, 40)}


def test_the_digest_by_hand() -> None:
    assert digest({"b": [1, 2.5, None], "a": "ü"}) == (
        "sha256:" + __import__("hashlib").sha256(b'{"a":"\\u00fc","b":[1,2.5,null]}').hexdigest()
    )
    assert digest({"a": 1}) != digest({"a": 1.0}) != digest({"a": True})


def test_the_digest_of_the_file_stays(data: Data) -> None:
    """A policy that says less, as an older version wrote it, is read; the digest is that of the file."""
    del data["policy"]["stages"][0]["seed"]
    found = Manifest.from_json(text(data))
    assert found.digest == digest(data) != digest(found.to_dict())
    assert replace(found, name="other").digest == digest(replace(found, name="other").to_dict())


def test_its_schema_is_one(data: Data) -> None:
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(schema())
    Draft202012Validator(schema()).validate(data)
    assert set(schema()["required"]) == set(data)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (b"", "can't be read as JSON"),
        (b"\xff\xfe", "can't be read as JSON"),
        (b"nope", "can't be read as JSON"),
        (b"[]", "holds a list"),
        (b"null", "holds a NoneType"),
        (b'{"a": 1, "a": 1}', "a key stands twice"),
        (b'{"format": {"x": 1, "x": 2}}', "a key stands twice"),
        (b'{"a": NaN}', "NaN is no JSON"),
        (b'{"a": -Infinity}', "-Infinity is no JSON"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "can't be read as JSON"),
        (b'{"a": "\\ud800"}', "can't be read as JSON"),
        (b'{"\\udfff": 1}', "can't be read as JSON"),
        (b"[" * 100_000, "can't be read as JSON"),
        (b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1), f"more than {DEEPEST} levels"),
        (b"[" + b"0," * MOST + b"0]", f"more than {MOST:,} values"),
        (b" " * (LARGEST + 1), f"expected at most {LARGEST:,}, it is no manifest"),
        (b"{}", "has format ''"),
        (b'{"format": 3}', "has format '3'"),
        (b'{"format": "quorate-ticket/1"}', "'quorate-ticket'"),
        (b'{"format": "quorate-bundle/2"}', "install a newer Quorate"),
        (b'{"format": "quorate-bundle/0"}', "export it anew"),
        ('{"format": "quorate-bundle/²"}'.encode(), "export it anew"),
        (b'{"format": "quorate-bundle/1"}', "its digest is not"),
        (b'{"format": "quorate-bundle/1", "digest": 5}', "its digest is not"),
    ],
)
def test_what_is_no_manifest(given: bytes, why: str) -> None:
    with pytest.raises(BundleError, match=why) as error:
        Manifest.from_json(given, "m")
    assert "\n" not in str(error.value)


def test_every_byte_counts(written: Manifest) -> None:
    good = written.to_json()
    for old, new in [('"ü"', '"u"'), ('"n": 1', '"n": 2'), ("0.1", "0.2"), ('"kind": "logits"', '"kind": "probs"')]:
        assert old in good.replace("\\u00fc", "ü")
        with pytest.raises(BundleError, match="its digest is not"):
            Manifest.from_json(good.replace("\\u00fc", "ü").replace(old, new))
    assert Manifest.from_json(good.replace("\\u00fc", "ü")) == written  # the same text in other letters


def test_every_key_is_needed_and_no_other(data: Data) -> None:
    for key in list(data):
        refused({name: value for name, value in data.items() if name != key}, "required|has format")
    refused(data | {"more": 1}, "unexpected")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", ""), ("name", "a\x1b[2Jb"), ("name", "two\nlines"), ("name", "end\n"), ("name", "\x7f"), ("name", "a\u2028b"), ("name", 3),
        ("name", "n" * 1001), ("kind", "top1"), ("combine", "median"), ("classes", []), ("classes", ["a", 1, "c"]),
        ("classes", ["a", "b\n", "c"]), ("golden", None), ("files", []), ("card", "../card.md"), ("card", "card.md\n"), ("costs", []),
        ("input", {"dtype": "float128", "shape": [6]}), ("input", {"dtype": "float32", "shape": [0]}),
        ("input", {"dtype": "float32", "shape": [-6]}), ("input", {"dtype": "float32", "shape": [6.0]}),
        ("input", {"dtype": "float32", "shape": [True]}), ("input", {"dtype": "float32", "shape": [2**60]}), ("stages", {}), ("stages", []),
        ("watch", []), ("policy", "x"), ("provenance", None), ("preprocessing", [1]),
    ],
)  # fmt: skip
def test_values_that_the_schema_refuses(data: Data, key: str, value: Any) -> None:
    refused(data | {key: value}, f"[$].*{key}.*: |does not match")


def at(*path: Any) -> Callable[[Data, Any], None]:
    """A function that puts a value there."""

    def put(data: Data, value: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return put


STAGE = ("stages", 0)


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        (("golden", "rows"), 4.0, "not of type 'integer'"),
        (("golden", "rows"), 0, "minimum"),
        (("golden", "rtol"), -0.1, "minimum"),
        (("golden", "atol"), 1e9, "maximum"),
        (("golden", "path"), "/golden", "does not match"),
        (("files", 0, "sha256"), "A" * 64, "does not match"),
        (("files", 0, "sha256"), "a" * 64 + "\n", "does not match"),
        (("files", 0, "size_bytes"), -1, "minimum"),
        (("files", 0, "size_bytes"), 2**41, "maximum"),
        (("files", 0, "path"), "a/../b", "does not match"),
        (("files", 0, "path"), "a" * 301, r"files\[0\]\.path: "),
        ((*STAGE, "batch"), 1.0, "integer"),
        ((*STAGE, "batch"), True, "integer"),
        ((*STAGE, "macs"), 1e300, "maximum"),
        ((*STAGE, "span"), [1], "too short|1"),
        ((*STAGE, "members"), None, "members"),
        ((*STAGE, "precision"), "fp4", "is not one of"),
        ((*STAGE, "writes", "h", "shape"), [1] * 17, "too long"),
        ((*STAGE, "scattered"), {"w": []}, "non-empty|short"),
        ((*STAGE, "members", "dtype"), "int64", "gives members int64"),
        ((*STAGE, "members", "shape"), [], "gives members"),
        ((*STAGE, "members", "shape"), [1, 1, 3], "gives members"),
        ((*STAGE, "members", "shape"), [1, 4], "4 outputs per row: expected 3 for 3 names"),
        ((*STAGE, "name"), "second", "stage names hold 'second' twice"),
        ((*STAGE, "name"), "other", "the policy is for stages"),
        ((*STAGE, "writes"), {}, "no earlier stage writes"),
        ((*STAGE, "writes", "h", "shape"), [5], "as another array than was written"),
        ((*STAGE, "writes", "h", "dtype"), "float64", "as another array than was written"),
        ((*STAGE, "writes", "h", "name"), "members", "outputs of stage 'first' hold 'members' twice"),
        ((*STAGE, "drops"), ["g", "g"], "drops of stage 'first' hold 'g' twice"),
        (("stages", 1, "input"), {"name": "read.h", "dtype": "float32", "shape": [6]}, "inputs of stage 'second' hold"),
        ((*STAGE, "input", "shape"), [7], r"takes float32 \(7,\), the bundle float32 \(6,\)"),
        ((*STAGE, "input", "dtype"), "uint8", "takes uint8"),
        ((*STAGE, "span"), [2, 2], "has the span"),
        ((*STAGE, "span"), [0, 7], r"has the span \(0, 7\) of 6 steps"),
        (("stages", 1, "span"), [0, 1], "of an input without steps"),
        ((*STAGE, "ticket"), "content/t", "ticket without weights"),
        ((*STAGE, "scattered"), {"w": [3]}, "weights without a ticket"),
        (("policy",), None, "a bundle of logits has no policy"),
        (("kind",), "probs", "the policy is for logits combined by probs, not probs"),
        (("combine",), "logits", "the policy is for logits combined by probs"),
        (("policy", "stages", 0, "temperature"), 0, "temperature=0"),
        (("policy", "stages", 0, "cost"), 10**400, "cost="),
        (("policy", "stages"), 3, "stages is int"),
        (("policy", "more"), 3, "unknown keys"),
        (("policy", "uncertainty"), "unheard", "unheard"),
        (("classes",), ["a", "b", "a"], "classes hold 'a' twice"),
        (("classes",), ["a", "b"], "expected 2 for 2 names"),
        (("card",), "other.md", "files and their use differ"),
        (("card",), "NUL.md", "files and their use differ"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit(data: Data, path: tuple[Any, ...], value: Any, why: str) -> None:
    at(*path)(data, value)
    refused(data, why)


def test_paths_that_one_system_takes_otherwise(data: Data) -> None:
    card = data["card"]
    for name, why in [("content/NUL.md", "names a device"), (data["golden"]["path"].upper(), "are one on some systems")]:
        changed = json.loads(json.dumps(data).replace(card, name))
        refused(changed, why)
    data["files"].append(data["files"][0])
    refused(data, "files hold .* twice")


def test_widths_without_names(data: Data) -> None:
    data["classes"] = None
    at("stages", 1, "members", "shape")(data, [1, 4])
    refused(data, "stage 'second' gives 4 outputs per row, the first stage 3")
    at("stages", 1, "members", "shape")(data, [1, None])
    assert Manifest.from_json(text(data)).stages[1].ports.members.shape == (1, None)


def test_a_regression_has_two_outputs_for_each_name(data: Data) -> None:
    regression = data | {"kind": "gaussian", "policy": None, "classes": ["mm", "kg"]}
    refused(regression, "gives 3 outputs per row: expected 4 for 2 names")
    for stage in regression["stages"]:
        stage["members"]["shape"] = [1, 4]
    assert Manifest.from_json(text(regression)).classes == ("mm", "kg")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}, {(1, 2): 3}])
def test_values_that_json_has_no_words_for(written: Manifest, value: Any) -> None:
    with pytest.raises(ValueError, match="can't hold this as JSON"):
        replace(written, provenance={"x": value}).to_json()


def test_numbers_and_depths_that_json_has_no_words_for(written: Manifest) -> None:
    with pytest.raises(ValueError, match="can't hold this as JSON"):
        replace(written, provenance={"x": 10**5000}).to_json()
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="can't hold this as JSON"):
        replace(written, provenance={"x": deep}).to_json()


def test_large_honest_manifests_take_seconds_at_most(written: Manifest) -> None:
    names = tuple(f"class {k}" for k in range(21_843))
    wide = tuple(
        replace(stage, ports=replace(stage.ports, members=Port("members", "float32", (1, len(names)))))
        for stage in written.stages
    )
    began = time.perf_counter()
    assert Manifest.from_json(replace(written, stages=wide, classes=names).to_json()).classes == names
    assert time.perf_counter() - began < 10


def test_many_errors_take_no_longer(data: Data) -> None:
    began = time.perf_counter()
    refused(data | {"classes": list(range(MOST - 1000))}, "classes")
    refused(data | {"files": [{} for _ in range(MOST - 1000)]}, "files")
    refused(data | {"stages": [data["stages"][0] | {"drops": [[], {}, 1, "a"] * 20_000}]}, "drops")
    assert time.perf_counter() - began < 15


def test_what_is_written_can_be_read_again(written: Manifest) -> None:
    """A writer that is refused must not be able to leave a bundle behind that nobody reads."""
    file = written.files[0]
    for bad in (
        replace(written, files=(*written.files[1:], File("../x", file.size_bytes, file.sha256))), replace(written, name="a\nb"),
        replace(written, policy=Policy((StagePolicy("first", cost=1.0),))),
    ):  # fmt: skip
        with pytest.raises(BundleError):
            Manifest.from_json(bad.to_json())
    assert module.FORMAT == "quorate-bundle"


def test_read_as_text(tmp_path: Path, written: Manifest) -> None:
    path = tmp_path / "m.json"
    path.write_text(written.to_json(), encoding="utf-8")
    assert Manifest.from_json(path.read_bytes()) == written
