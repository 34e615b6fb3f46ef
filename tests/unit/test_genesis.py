"""A genesis is checked field by field, and its id is the swarm."""

from collections.abc import Callable

import pytest
from swarms import CREATED_AT_MS, WINDOW_MS, genesis_message, id_of, key_of, swarm_of

from fullrank_protocol.envelope import NO_SWARM, canonical_bytes, seal
from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.genesis import (
    Genesis,
    ModuleKind,
    Policy,
    TrainingMode,
    create_genesis,
    default_timing,
    open_genesis,
)
from fullrank_protocol.limits import MAX_CHECKPOINT_BYTES
from fullrank_protocol.scaled import Scaled
from fullrank_protocol.wire import objects_pb2 as wire


def refusal_of(message: wire.Genesis, *, signer: str = "ada") -> RejectError:
    with pytest.raises(RejectError) as caught:
        create_genesis(key_of(signer), message)
    return caught.value


def test_a_genesis_reads_back_as_it_was_written() -> None:
    genesis = create_genesis(key_of("ada"), genesis_message())
    assert genesis.name == "test swarm"
    assert genesis.base.reference == "embedded:test"
    assert [tensor.shape for tensor in genesis.base.tensors] == [(7, 3), (5,), (4, 3)]
    assert genesis.base.files[0].name == "config.json"
    assert genesis.module("up.weight").kind is ModuleKind.LINEAR
    assert genesis.module("norm.weight").kind is ModuleKind.DENSE
    assert genesis.training.mode is TrainingMode.MODE_B
    assert genesis.rule.outer_step == Scaled.of(1.0)
    assert genesis.membership.policy is Policy.INVITE
    assert genesis.membership.founders == (key_of("ada").public_key,)
    assert genesis.predecessor is None


def test_the_swarm_id_is_the_id_of_the_envelope() -> None:
    genesis = create_genesis(key_of("ada"), genesis_message())
    assert genesis.swarm == genesis.envelope.id
    assert genesis.envelope.swarm == NO_SWARM
    again = open_genesis(genesis.envelope.encode(), expect=genesis.swarm)
    assert again == genesis
    assert hash(again) == hash(genesis)


def test_any_change_gives_another_swarm() -> None:
    message = genesis_message()
    message.nonce = b"\1" * 16
    assert create_genesis(key_of("ada"), message).swarm != swarm_of().id


def test_another_swarms_genesis_is_refused() -> None:
    with pytest.raises(RejectError, match=swarm_of().id.hex()) as caught:
        open_genesis(swarm_of().genesis.envelope.encode(), expect=id_of("other"))
    assert caught.value.rule is Rule.SWARM


def test_another_object_is_no_genesis() -> None:
    vote = swarm_of().vote("ada", target=id_of("target"), target_slot=1)
    with pytest.raises(RejectError, match="found a vote where a genesis is required"):
        open_genesis(vote.envelope.encode())


def test_slots_are_windows_from_the_creation_on() -> None:
    genesis = swarm_of().genesis
    assert genesis.slot_at(CREATED_AT_MS - 1) == -1
    assert genesis.slot_at(0) == -1
    assert genesis.slot_at(CREATED_AT_MS) == 0
    assert genesis.slot_at(CREATED_AT_MS + WINDOW_MS - 1) == 0
    assert genesis.slot_at(CREATED_AT_MS + 3 * WINDOW_MS) == 3
    assert genesis.slot_start_ms(3) == CREATED_AT_MS + 3 * WINDOW_MS
    assert genesis.slot_end_ms(3) == CREATED_AT_MS + 4 * WINDOW_MS


def test_an_unknown_module_is_refused_by_name() -> None:
    with pytest.raises(RejectError, match=r"'embed\.weight' is not an adapted module") as caught:
        swarm_of().genesis.module("embed.weight")
    assert caught.value.rule is Rule.SHAPE


def test_default_grace_is_a_tenth_of_the_window_up_to_fifteen_seconds() -> None:
    assert default_timing().grace_ms == 15_000
    assert default_timing(slot_window_ms=2_000).grace_ms == 200


def test_a_chain_is_stalled_by_default_after_a_day_and_at_least_64_slots() -> None:
    assert default_timing(slot_window_ms=300_000).stall_slots == 288
    assert default_timing(slot_window_ms=7_000_000).stall_slots == 64


def test_a_predecessor_is_kept() -> None:
    message = genesis_message()
    message.predecessor.swarm = id_of("old")
    message.predecessor.checkpoint = id_of("final")
    message.predecessor.model_digest = id_of("digest")
    predecessor = create_genesis(key_of("ada"), message).predecessor
    assert predecessor is not None
    assert predecessor.checkpoint == id_of("final")


def test_only_a_root_key_signs() -> None:
    error = refusal_of(genesis_message(), signer="eve")
    assert error.rule is Rule.MEMBERSHIP
    assert key_of("eve").public_key.hex() in error.detail


@pytest.mark.parametrize("part", ["base", "timing", "training", "rule", "limits", "membership"])
def test_every_part_must_be_there(part: str) -> None:
    message = genesis_message()
    message.ClearField(part)  # type: ignore[arg-type]
    assert refusal_of(message).detail == f"the genesis has no {part}"


def change(path: str, value: object) -> Callable[[wire.Genesis], None]:
    """Sets a field by its dotted path."""

    def apply(message: wire.Genesis) -> None:
        *parts, last = path.split(".")
        target: object = message
        for part in parts:
            target = target[int(part)] if part.isdigit() else getattr(target, part)  # type: ignore[index]
        if isinstance(value, list):
            del getattr(target, last)[:]
            getattr(target, last).extend(value)
        else:
            setattr(target, last, value)

    return apply


BAD = [
    ("name", "", Rule.SCHEMA, "name is empty"),
    ("name", "x" * 65, Rule.SCHEMA, "65 bytes, at most 64"),
    ("name", "two\nlines", Rule.SCHEMA, r"invisible character U\+000A"),
    ("name", "evil\u202ename", Rule.SCHEMA, r"invisible character U\+202E"),
    ("rule_version", 2, Rule.VERSION, "rule version 2, 1 required"),
    ("created_at_ms", 0, Rule.SCHEMA, "time of the genesis is 0"),
    ("created_at_ms", 2**63, Rule.SCHEMA, "time of the genesis"),
    ("nonce", bytes(15), Rule.SCHEMA, "nonce of the genesis has 15 bytes, 16 required"),
    ("base.reference", "x" * 257, Rule.SCHEMA, "reference"),
    ("base.tensors", [], Rule.SCHEMA, "number of tensors is 0"),
    ("base.tensors.0.name", "zebra", Rule.SCHEMA, "tensor names are not strictly ascending at position 1"),
    ("base.tensors.0.name", "norm.weight", Rule.SCHEMA, "tensor names are not strictly ascending"),
    ("base.tensors.0.name", "", Rule.SCHEMA, "tensor's name is empty"),
    ("base.tensors.0.sha256", bytes(31), Rule.SCHEMA, "hash of embed.weight has 31 bytes"),
    ("base.tensors.0.shape", [7, 0], Rule.SHAPE, r"embed.weight has shape \[7, 0\]"),
    ("base.tensors.0.shape", [2**40], Rule.SHAPE, "elements of embed.weight"),
    ("base.tensors.0.shape", [2**63, 2**63], Rule.SHAPE, "elements of embed.weight"),
    ("base.tensors.0.shape", [1] * 9, Rule.SCHEMA, "dimensions of embed.weight is 9"),
    ("base.files.0.name", "../config.json", Rule.SCHEMA, "not a plain relative path"),
    ("base.files.0.name", "/etc/passwd", Rule.SCHEMA, "not a plain relative path"),
    ("base.files.0.name", "a//b", Rule.SCHEMA, "not a plain relative path"),
    ("base.files.0.name", "a\\b", Rule.SCHEMA, "not a plain relative path"),
    ("base.files.0.name", ".bashrc", Rule.SCHEMA, "not a plain relative path"),
    ("base.files.0.name", "C:config", Rule.SCHEMA, "not a plain relative path"),
    ("base.files.0.name", "", Rule.SCHEMA, "file name is empty"),
    ("base.files.0.blob.num_bytes", 1 << 40, Rule.SIZE, "file config.json"),
    ("base.files.0.blob.id", b"", Rule.SCHEMA, "file config.json has 0 bytes"),
    ("modules", [], Rule.SCHEMA, "number of modules is 0"),
    ("modules.0.name", "zebra", Rule.SCHEMA, "module names are not strictly ascending"),
    ("modules.0.name", "missing", Rule.SHAPE, "module missing is not a tensor of the base"),
    ("modules.0.kind", 0, Rule.SCHEMA, "unknown kind 0"),
    ("modules.0.kind", 3, Rule.SCHEMA, "unknown kind 3"),
    ("modules.0.in_features", 5, Rule.SCHEMA, "dense module norm.weight is 5"),
    ("modules.0.out_features", 6, Rule.SHAPE, r"norm.weight says shape \[6\], its tensor has \[5\]"),
    ("modules.1.out_features", 3, Rule.SHAPE, r"up.weight says shape \[3, 3\], its tensor has \[4, 3\]"),
    ("modules.1.out_features", 2**30, Rule.SCHEMA, "outputs of up.weight"),
    ("modules.1.in_features", 0, Rule.SCHEMA, "inputs of up.weight is 0"),
    ("max_rank", 0, Rule.RANK, "maximum rank is 0"),
    ("max_rank", 1025, Rule.RANK, "maximum rank is 1025"),
    ("codecs", [], Rule.CODEC, "number of codecs is 0"),
    ("codecs", [99], Rule.CODEC, "unknown codec 99"),
    ("timing.slot_window_ms", 99, Rule.SCHEMA, "slot window in ms is 99"),
    ("timing.slot_window_ms", 2**31, Rule.SCHEMA, "slot window"),
    ("timing.grace_ms", 0, Rule.SCHEMA, "grace in ms is 0"),
    ("timing.grace_ms", WINDOW_MS + 1, Rule.SCHEMA, "grace in ms is 1001, 1 to 1000 required"),
    ("timing.stall_slots", 3, Rule.SCHEMA, "slots until the chain is stalled is 3"),
    ("timing.stall_slots", 2**24 + 1, Rule.SCHEMA, "slots until the chain is stalled"),
    ("training.mode", 0, Rule.SCHEMA, "training mode 0"),
    ("training.rank", 17, Rule.RANK, "training rank is 17, 1 to 16 required"),
    ("training.bits_b", 1, Rule.SCHEMA, "bits of B is 1"),
    ("training.bits_a", 9, Rule.SCHEMA, "bits of A is 9"),
    ("training.learning_rate_nano", 0, Rule.SCHEMA, "learning rate"),
    ("training.warmup_steps", 201, Rule.SCHEMA, "warm-up steps is 201, 0 to 200 required"),
    ("training.max_steps", 0, Rule.SCHEMA, "most steps of a contribution is 0"),
    ("training.batch_size", 0, Rule.SCHEMA, "batch size"),
    ("training.block_length", 1, Rule.SCHEMA, "block length"),
    ("training.period_rounds", 0, Rule.SCHEMA, "rounds for which A is kept"),
    ("rule.max_contributions", 0, Rule.SCHEMA, "most contributions is 0"),
    ("rule.token_cap", 0, Rule.SCHEMA, "token cap is 0"),
    ("rule.max_staleness_rounds", 65, Rule.SCHEMA, "most staleness is 65"),
    ("rule.duplicate_cosine_micro", 1_000_001, Rule.SCHEMA, "cosine"),
    ("rule.weiszfeld_steps", 65, Rule.SCHEMA, "Weiszfeld steps is 65"),
    ("rule.update_norm_cap_milli", 0, Rule.SCHEMA, "cap of the update's norm"),
    ("rule.trailing_rounds", 0, Rule.SCHEMA, "trailing rounds is 0"),
    ("rule.open_share_micro", 1_000_000, Rule.SCHEMA, "open share"),
    ("rule.outer_step.mantissa", 0, Rule.NON_CANONICAL, "exponent"),
    ("rule.outer_step.mantissa", 127, Rule.NON_CANONICAL, "mantissa 127"),
    ("rule.outer_step.exponent", 0, Rule.SCALE, "outer step is 128.0"),
    ("limits.max_delta_bytes", 0, Rule.SCHEMA, "most bytes of a delta is 0"),
    ("limits.min_scale_exponent", -65, Rule.SCALE, "smallest scale exponent is -65"),
    ("limits.min_scale_exponent", 1, Rule.SCALE, "largest scale exponent is 0, 1 to"),
    ("limits.max_scale_exponent", 17, Rule.SCALE, "largest scale exponent is 17"),
    ("limits.max_checkpoint_bytes", 32_767, Rule.SCHEMA, "32767, 32768 to"),
    ("limits.max_checkpoint_bytes", MAX_CHECKPOINT_BYTES + 1, Rule.SCHEMA, "most bytes of a checkpoint"),
    ("membership.policy", 0, Rule.POLICY, "membership policy 0"),
    ("membership.root_keys", [], Rule.SCHEMA, "number of root keys is 0"),
    ("membership.root_keys", [bytes(32)], Rule.SIGNATURE, "a root key .* small order"),
    ("membership.root_keys", [key_of("ada").public_key] * 2, Rule.SCHEMA, "root keys are not strictly ascending"),
    ("membership.root_threshold", 0, Rule.SCHEMA, "root threshold is 0"),
    ("membership.root_threshold", 2, Rule.SCHEMA, "root threshold is 2, 1 to 1 required"),
    ("membership.founder_names", ["ada", "bob"], Rule.SCHEMA, "1 founders have 2 names"),
    ("membership.founder_names", ["a" * 65], Rule.SCHEMA, "founder.s name"),
    ("membership.founders", [], Rule.SCHEMA, "number of founders is 0"),
    ("membership.founders", [b"\xff" * 32], Rule.SIGNATURE, "a founder's key .* canonical"),
    ("predecessor.swarm", bytes(31), Rule.SCHEMA, "predecessor's swarm has 31 bytes"),
]


@pytest.mark.parametrize(("path", "value", "rule", "words"), BAD, ids=[f"{b[0]}={b[1]!r}"[:60] for b in BAD])
def test_a_field_out_of_bounds_is_refused_with_its_numbers(path: str, value: object, rule: Rule, words: str) -> None:
    message = genesis_message()
    change(path, value)(message)
    with pytest.raises(RejectError, match=words) as caught:
        create_genesis(key_of("ada"), message)
    assert caught.value.rule is rule


def test_files_with_names_that_differ_in_case_only_are_refused() -> None:
    message = genesis_message()
    blob = message.base.files[0].blob
    message.base.weight_files.extend([wire.FileEntry(name="CONFIG.json", blob=blob)])
    assert "same name" in refusal_of(message).detail


def test_files_may_lie_in_folders() -> None:
    message = genesis_message()
    message.base.files.append(wire.FileEntry(name="templates/tool_use.jinja", blob=message.base.files[0].blob))
    assert create_genesis(key_of("ada"), message).base.files[1].name == "templates/tool_use.jinja"


def test_a_file_entry_needs_its_blob() -> None:
    message = genesis_message()
    message.base.files[0].ClearField("blob")
    assert refusal_of(message).detail == "the entry of config.json has no blob"


def test_a_single_number_may_be_a_tensor_of_the_base() -> None:
    message = genesis_message()
    message.base.tensors.insert(0, wire.TensorHash(name="a.scale", sha256=bytes(32)))
    assert create_genesis(key_of("ada"), message).base.tensors[0].shape == ()


def test_an_unknown_field_of_a_later_version_is_refused() -> None:
    payload = canonical_bytes(genesis_message()) + b"\xa0\x06\x01"  # field 100
    message = wire.Genesis.FromString(payload)
    envelope = seal(key_of("ada"), swarm=NO_SWARM, type=wire.GENESIS, message=message)
    with pytest.raises(RejectError, match="canonical form"):
        open_genesis(envelope.encode())


def test_the_text_of_a_genesis_stays_short() -> None:
    genesis: Genesis = swarm_of().genesis
    assert "up.weight" not in repr(genesis)
