"""torch.compile's caches on disk: hit by the same operators, missed once an operator changed."""

from pathlib import Path

import torch
from table_models import SCHEMA, make_batch
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache

from esmm_fast import EmbeddingTables, _library


def _hits_and_misses() -> tuple[int, int]:
    """Compiles a look-up anew, and returns the hits and misses of the cache so far."""
    torch._dynamo.reset()
    tables = EmbeddingTables(SCHEMA, 4)
    mixing = torch.ones(4, 4)  # products alone: no C++ compiler is started
    compiled = torch.compile(
        lambda batch: [torch.mm(side.reshape(-1, 4), mixing) for side in tables(batch)],
        fullgraph=True,
    )
    sum(out.sum() for out in compiled(make_batch(0))).backward()  # type: ignore[union-attr]
    found = counters["aot_autograd"]
    return found["autograd_cache_hit"], found["autograd_cache_miss"]


def test_a_changed_operator_is_traced_anew() -> None:
    config = torch.compiler.config
    counters.clear()
    with fresh_cache():
        assert _hits_and_misses() == (0, 1)
        assert _hits_and_misses() == (1, 1)
        with config.patch(cache_key_tag=config.cache_key_tag.replace("-", "-other")):
            assert _hits_and_misses() == (1, 2)


def test_the_key_holds_schemas_and_sources(tmp_path: Path) -> None:
    files = [tmp_path / "a.py", tmp_path / "b.py"]
    for file in files:
        file.write_text("x = 1\n")
    fingerprint = _library.operators_fingerprint(files)
    assert fingerprint == _library.operators_fingerprint(files[::-1])
    files[1].write_text("x = 2\n")
    assert fingerprint != _library.operators_fingerprint(files)
    assert _library.operators_fingerprint([]) != fingerprint
    assert "esmm_fast-" in torch.compiler.config.cache_key_tag


def test_a_tag_of_the_user_stays() -> None:
    with torch.compiler.config.patch(cache_key_tag="mine"):
        _library.key_compile_caches("0123")
        assert torch.compiler.config.cache_key_tag == "mine esmm_fast-0123"
