"""Factors in GGUF files that gguf's own writer made, read by gguf's own reader; every refusal."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from results.export.gguf_container import open_gguf, write_copy
from results.export.gguf_file import read_gguf_factors, write_gguf
from rope.factors import RescaleFactors

PAIRS = 4
LONG, SHORT, ALWAYS = "rope_factors_long.weight", "rope_factors_short.weight", "rope_freqs.weight"
FACTORS = RescaleFactors(
    values=(1.0, 1.1, 2.7, 4.3),
    rotary_dim=2 * PAIRS,
    base=5e5,
    original_length=512,
    target_length=2048,
    method="by hand",
)
OWN = (1.0, 1.0, 1.5, 8.0)
Keys = Mapping[str, str | int | float]
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that writes a tiny model; keys of its architecture come without it."""

    def made(
        architecture: str = "llama",
        *,
        keys: Keys | None = None,
        lists: Mapping[str, npt.NDArray[np.generic]] | None = None,
        endianness: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE,
        alignment: int | None = None,
        name: str = "model.gguf",
    ) -> Path:
        writer = gguf.GGUFWriter(tmp_path / name, architecture, endianess=endianness)
        if alignment:
            writer.add_custom_alignment(alignment)
        defaults: Keys = {"context_length": 512, "rope.freq_base": 5e5, "rope.dimension_count": 2 * PAIRS}
        for key, value in {**defaults, **(keys or {})}.items():
            full = key if key.startswith("split.") else f"{architecture}.{key}"
            kind = {str: gguf.GGUFValueType.STRING, int: gguf.GGUFValueType.UINT32}.get(type(value))
            writer.add_key_value(full, value, kind or gguf.GGUFValueType.FLOAT32)
        writer.add_token_list(["a", "", "ü"])
        writer.add_key_value("tokenizer.chat_template", "", gguf.GGUFValueType.STRING)
        writer.add_key_value("general.nested", [[1, 2], [3]], gguf.GGUFValueType.ARRAY)
        random = np.random.default_rng(0)
        writer.add_tensor("token_embd.weight", random.random((5, 7), dtype=np.float32))
        for list_name, values in (lists or {}).items():
            writer.add_tensor(list_name, values)
        blocks = random.integers(0, 256, (3, 34), dtype=np.uint8)
        writer.add_tensor("output.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / name

    return made


def floats(*values: float) -> npt.NDArray[np.generic]:
    return np.array(values, dtype=np.float32)


def write(source: Path, factors: RescaleFactors = FACTORS, **options: object) -> tuple[str, ...]:
    target = options.get("target", source.with_name("scaled.gguf"))
    assert isinstance(target, Path)
    told = write_gguf(
        source,
        target,
        factors,
        "pinned" if options.get("mode") == "pinned" else "dual",
        force=bool(options.get("force")),
        in_place=bool(options.get("in_place")),
    )
    return (*told.steps, *told.notes)


def refusal(source: Path, factors: RescaleFactors = FACTORS, **options: object) -> str:
    with pytest.raises(ValueError) as caught:
        write(source, factors, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def read(file: Path) -> gguf.GGUFReader:
    return gguf.GGUFReader(file)


def tensor(file: Path, name: str) -> npt.NDArray[np.float32]:
    found = next(tensor for tensor in read(file).tensors if tensor.name == name)
    assert found.tensor_type == gguf.GGMLQuantizationType.F32
    data: npt.NDArray[np.float32] = found.data
    return data


def test_gguf_reads_both_lists_and_the_keys_that_llama_cpp_asks_for(make: Make) -> None:
    source = make(keys={"rope.scaling.factor": 1.0})
    write(source, replace(FACTORS, attention_temperature=1.2, short_values=OWN))
    scaled = source.with_name("scaled.gguf")
    assert np.array_equal(tensor(scaled, LONG), floats(*FACTORS.values))
    assert np.array_equal(tensor(scaled, SHORT), floats(*OWN))
    fields = read(scaled).fields
    assert fields["llama.rope.scaling.type"].contents() == "longrope"
    for key, value, kind in (
        ("rope.scaling.original_context_length", 512, gguf.GGUFValueType.UINT32),
        ("rope.scaling.attn_factor", np.float32(1.2), gguf.GGUFValueType.FLOAT32),
        ("context_length", 2048, gguf.GGUFValueType.UINT32),
    ):
        assert fields[f"llama.{key}"].contents() == value
        assert fields[f"llama.{key}"].types == [kind]
    assert "llama.rope.scaling.factor" not in fields  # it would multiply every factor


def test_everything_else_stays_as_it_was_byte_for_byte(make: Make) -> None:
    for alignment in (32, 256):
        source = make(alignment=alignment)
        before = read(source)
        write(source, force=True)
        after = read(source.with_name("scaled.gguf"))
        assert after.alignment == alignment
        changed = {"GGUF.tensor_count", "GGUF.kv_count", "llama.context_length"}
        for name in before.fields.keys() - changed:
            kept = [part.tobytes() for part in after.fields[name].parts]
            assert kept == [part.tobytes() for part in before.fields[name].parts], name
        tensors = {tensor.name: tensor for tensor in after.tensors}
        for tensor in before.tensors:
            assert tensors[tensor.name].data.tobytes() == tensor.data.tobytes()
            assert tensors[tensor.name].tensor_type == tensor.tensor_type
        # llama.cpp wants every tensor where the one before ends, at the next multiple of the alignment
        expected = after.data_offset
        for tensor in after.tensors:
            assert tensor.data_offset == expected
            expected += -(-tensor.n_bytes // alignment) * alignment
        assert source.with_name("scaled.gguf").stat().st_size == expected


def test_without_short_factors_the_short_list_is_the_models_own_rotation(make: Make) -> None:
    write(make())
    scaled = make().with_name("scaled.gguf")
    assert np.array_equal(tensor(scaled, SHORT), np.ones(PAIRS))
    source = make(lists={ALWAYS: floats(*OWN)})
    notes = write(source, force=True)
    assert np.array_equal(tensor(scaled, SHORT), floats(*OWN))
    assert ALWAYS not in [each.name for each in read(scaled).tensors]
    assert "The short list is the file's own rotation inside its original window (rope_freqs.weight)." in notes


def test_pinned_writes_the_long_list_as_both(make: Make) -> None:
    source = make(lists={ALWAYS: floats(*OWN)})
    notes = write(source, replace(FACTORS, short_values=OWN), mode="pinned")
    scaled = source.with_name("scaled.gguf")
    for name in (LONG, SHORT):
        assert np.array_equal(tensor(scaled, name), floats(*FACTORS.values))
    assert ALWAYS not in [each.name for each in read(scaled).tensors]
    assert "Both lists are the long one: short prompts rotate with it too." in notes
    assert any("(rope_freqs.weight) was removed" in note for note in notes)


@pytest.mark.parametrize("architecture", ["llama", "phi3", "minicpm", "granite", "mistral3", "deci"])
def test_what_was_written_is_read_back_in_the_bits_of_32_bit_floats(make: Make, architecture: str) -> None:
    source = make(architecture)
    values = np.random.default_rng(1).uniform(0.5, 30, (2, PAIRS))
    factors = replace(
        FACTORS,
        values=tuple(values[0].tolist()),
        short_values=tuple(values[1].tolist()),
        attention_temperature=1.1903,
        short_attention_temperature=1.1903,
    )
    write(source, factors)
    temperature = float(np.float32(1.1903))
    assert read_gguf_factors(source.with_name("scaled.gguf")) == replace(
        factors,
        values=tuple(values[0].astype(np.float32).tolist()),
        short_values=tuple(values[1].astype(np.float32).tolist()),
        attention_temperature=temperature,
        short_attention_temperature=temperature,
        method="imported",
    )
    again = source.with_name("again.gguf")
    write(source, read_gguf_factors(source.with_name("scaled.gguf")), target=again)
    assert again.read_bytes() == source.with_name("scaled.gguf").read_bytes()


def test_the_temperature_of_a_file_is_that_of_both_windows(make: Make) -> None:
    source = make()
    write(source, replace(FACTORS, attention_temperature=1.25))
    found = read_gguf_factors(source.with_name("scaled.gguf"))
    assert (found.attention_temperature, found.short_attention_temperature) == (1.25, 1.25)
    assert found.short_values is None
    write(source, mode="pinned", force=True)
    found = read_gguf_factors(source.with_name("scaled.gguf"))
    assert found.short_values == found.values


def test_one_list_for_every_length_is_read_as_both(make: Make) -> None:
    found = read_gguf_factors(make("exaone", lists={ALWAYS: floats(*OWN)}))
    assert (found.values, found.short_values, found.scale, found.method) == (OWN, OWN, 1.0, "imported")
    assert found.provenance == {"file": "model.gguf", "architecture": "exaone", "tensor": ALWAYS}


def test_the_base_is_llama_cpps_where_the_file_has_none(make: Make) -> None:
    source = make(keys={"rope.freq_base": 0.0, "rope.dimension_count": 0, "attention.key_length": 2 * PAIRS})
    write(source, replace(FACTORS, base=1e4))
    assert read_gguf_factors(source.with_name("scaled.gguf")).base == 1e4
    source = make(keys={"rope.dimension_count": 0, "embedding_length": 24, "attention.head_count": 3})
    write(source, force=True)
    source = make(keys={"rope.dimension_count": 0})
    assert "must say its rope.dimension_count, got none" in refusal(source, force=True)


def test_the_steps_say_what_to_type_and_the_notes_what_differs(make: Make) -> None:
    source = make()
    steps = write(source, replace(FACTORS, attention_temperature=1.25))
    assert steps[0].startswith(f"llama-server -m {source.with_name('scaled.gguf')} -c 2048 ")
    assert " -c 512 --yarn-attn-factor 0.8 " in steps[1]
    told = " ".join(steps)
    assert "one attention temperature for both lists, 1.25" in told
    assert "Leave --context-shift off" in told
    assert "is no multiple" not in told
    plain = " ".join(write(source, replace(FACTORS, original_length=500), force=True))
    assert "-c 500 takes the long list, -c 256 or less the short one" in plain
    assert "temperature" not in plain
    tiny = " ".join(write(source, replace(FACTORS, original_length=100), force=True))
    assert "-c 100 takes the long list, and no -c the short one" in tiny
    both = write(source, replace(FACTORS, attention_temperature=1.25, short_attention_temperature=1.25), force=True)
    assert "yarn-attn-factor" not in " ".join(both)


def test_an_existing_target_is_replaced_by_force_only(make: Make) -> None:
    source = make()
    target = source.with_name("scaled.gguf")
    target.write_text("mine")
    assert "the target must not exist, got a file that does. --force replaces it." in refusal(source)
    assert target.read_text() == "mine"
    write(source, force=True)
    assert read_gguf_factors(target).target_length == 2048


def test_the_model_itself_is_replaced_only_where_that_is_asked_for(make: Make) -> None:
    source = make()
    before = source.read_bytes()
    link = source.with_name("link.gguf")
    link.symlink_to(source)
    for target in (source, link):
        assert "must be another file than the model, got the same" in refusal(source, target=target, force=True)
    assert source.read_bytes() == before
    write(source, target=link, in_place=True)
    assert link.is_symlink()
    assert read_gguf_factors(source).values == tuple(floats(*FACTORS.values).tolist())


def test_a_scaled_model_is_scaled_anew_by_force_only(make: Make) -> None:
    source = make(
        "phi3", lists={LONG: floats(2, 2, 2, 2), SHORT: floats(*OWN)}, keys={"rope.scaling.attn_factor": 1.19}
    )
    assert f"already scaled ({LONG} and {SHORT}). --force replaces" in refusal(source)
    notes = write(source, replace(FACTORS, attention_temperature=1.25), force=True)
    scaled = source.with_name("scaled.gguf")
    assert np.array_equal(tensor(scaled, LONG), floats(*FACTORS.values))
    assert np.array_equal(tensor(scaled, SHORT), floats(*OWN))  # its own rotation in its own window
    assert read_gguf_factors(scaled).attention_temperature == 1.25
    # 1.19 / 1.25: the temperature that its own short list goes with, in 32 bits
    assert " -c 512 --yarn-attn-factor 0.95200" in notes[1]
    assert any("--yarn-attn-factor 0.95200" in note and "back" in note for note in notes[2:])
    assert f"The file's own scaling ({LONG} and {SHORT}) was replaced." in notes
    yarn = make(keys={"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.yarn_ext_factor": 1.0})
    assert "already scaled (yarn, factor 4)" in refusal(yarn, force=False, target=yarn.with_name("other.gguf"))
    assert "got yarn. Use --mode pinned, or give factors" in refusal(yarn, force=True)
    write(yarn, force=True, mode="pinned")
    write(yarn, replace(FACTORS, short_values=OWN), force=True)
    assert not [name for name in read(scaled).fields if "factor" in name and "attn_factor" not in name]
    old = make(keys={"rope.scale_linear": 2.0})
    assert "already scaled (linear, factor 2)" in refusal(old, target=old.with_name("other.gguf"))
    write(old, force=True)
    assert "llama.rope.scale_linear" not in read(scaled).fields


def test_a_linear_model_keeps_its_own_rotation_inside_its_window(make: Make) -> None:
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    notes = write(make(keys=linear), force=True)
    scaled = make().with_name("scaled.gguf")
    assert np.array_equal(tensor(scaled, SHORT), np.full(PAIRS, 4))
    assert "The short list is the file's own rotation inside its original window (linear, factor 4)." in notes
    notes = write(make(keys=linear, lists={ALWAYS: floats(*OWN)}), force=True)
    assert np.array_equal(tensor(scaled, SHORT), 4 * floats(*OWN))
    assert any("(rope_freqs.weight times linear, factor 4)" in note for note in notes)


def test_a_pinned_file_does_not_give_its_list_to_the_short_window(make: Make) -> None:
    source = make(lists={LONG: floats(*OWN), SHORT: floats(*OWN)})
    write(source, force=True)
    assert np.array_equal(tensor(source.with_name("scaled.gguf"), SHORT), np.ones(PAIRS))


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("qwen2", "gives no factors to RoPE"),
        ("qwen3", "gives no factors to RoPE"),
        ("smollm3", "gives no factors to RoPE"),
        ("pangu-embedded", "rotates without them, silently"),
        ("refact", "rotates without them, silently"),
        ("exaone4", "takes one list for all lengths only"),
        ("step35", "do not all rotate alike"),
    ],
)
def test_an_architecture_that_would_not_rotate_with_the_lists_is_refused(
    make: Make, architecture: str, reason: str
) -> None:
    message = refusal(make(architecture))
    assert f"got {architecture}, which" in message or f"got {architecture}, whose" in message
    assert reason in message
    assert "`ropewalk export --to vllm`" in message


def test_factors_for_another_model_are_refused(make: Make) -> None:
    source = make()
    other = replace(FACTORS, values=(1.0, 2.0), rotary_dim=4)
    assert "must have rotary_dim 8 for" in refusal(source, other)
    assert "must have base 500000 for" in refusal(source, replace(FACTORS, base=1e4))
    assert "must have num_start_tokens 0, got 4" in refusal(source, replace(FACTORS, num_start_tokens=4))
    for value in (1e-60, 1e60):
        message = refusal(source, replace(FACTORS, values=(1.0, 1.0, 1.0, value)))
        assert f"must fit 32-bit floats, got {value:g} (pair 3)" in message


def test_every_truncated_file_is_refused_and_leaves_nothing_behind(make: Make) -> None:
    source = make()
    whole = source.read_bytes()
    end = max(tensor.data_offset + tensor.n_bytes for tensor in read(source).tensors)
    for length in range(0, end, 3):
        source.write_bytes(whole[:length])
        message = refusal(source)
        assert message.startswith(f"{source}: ")
        assert "got" in message
    assert [path.name for path in source.parent.iterdir()] == ["model.gguf"]


def test_files_that_are_no_single_gguf_are_refused(make: Make, tmp_path: Path) -> None:
    assert "must be a readable file, got: No such file" in refusal(tmp_path / "none.gguf")
    assert "must be a readable file, got: Is a directory" in refusal(tmp_path)
    (tmp_path / "text.gguf").write_text("once upon a time there was")
    assert "must begin with 'GGUF', got b'once'" in refusal(tmp_path / "text.gguf")
    assert "got a big-endian one" in refusal(make(endianness=gguf.GGUFEndian.BIG))
    assert "got one of 3 parts. Merge them first" in refusal(make(keys={"split.count": 3}))
    damaged = make()
    damaged.write_bytes(damaged.read_bytes()[:8] + b"\xff" * 7 + b"\0" + damaged.read_bytes()[16:])
    assert "header is damaged or cut off" in refusal(damaged)


def test_a_target_that_cannot_be_written_is_refused(make: Make, tmp_path: Path) -> None:
    source = make()
    assert "the target must be in a folder, got" in refusal(source, target=tmp_path / "none" / "scaled.gguf")
    (tmp_path / "folder").mkdir()
    assert "got: Is a directory" in refusal(source, target=tmp_path / "folder", force=True)
    system = Path("/proc/self/scaled.gguf")  # a folder where not even root makes files
    if system.parent.is_dir():
        message = refusal(source, target=system)
        assert "scaled.gguf: the " in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "model.gguf"]


def test_a_file_without_readable_factors_is_refused(make: Make) -> None:
    def told(**options: object) -> str:
        with pytest.raises(ValueError) as caught:
            read_gguf_factors(make(**options))
        assert str(caught.value).startswith(str(make(**options)))
        return str(caught.value)

    assert "must hold factors (rope_factors_long.weight or rope_freqs.weight), got none. Give" in told()
    assert "got none, and is scaled otherwise (yarn, factor 4)" in told(
        keys={"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
    )
    long = {LONG: floats(1, 2, 3, 4)}
    assert "must have no rope.scaling.factor, got 4" in told(lists=long, keys={"rope.scaling.factor": 4.0})
    assert "must be one list of 32-bit floats, got 1 dimension(s) of F16" in told(
        lists={LONG: np.ones(PAIRS, dtype=np.float16)}
    )
    assert "got 2 dimension(s) of F32" in told(lists={LONG: np.ones((2, 2), dtype=np.float32)})
    assert "values[1] must be a finite number above 0, got 0.0" in told(lists={LONG: floats(1, 0, 1, 1)})
    assert "must say its context_length, got none" in told(lists=long, keys={"context_length": 0})


def test_a_file_that_changes_while_it_is_copied_is_refused(make: Make) -> None:
    model = open_gguf(make())
    model.path.write_bytes(model.path.read_bytes()[:-64])
    with pytest.raises(ValueError, match="must stay as it is while it is copied"):
        write_copy(model, model.path.with_name("copy.gguf"), without=(), keys={}, tensors={})
