"""The bus handshake: honest runs, then attacks.

Each attack is run twice: against the code, where it must fail, and against the code with one binding taken
out of the transcript, where it must succeed. The second run shows that the first one can fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import handshake
from cluster.gossip_message import Terms, VersionRange, compatible
from cluster.handshake import (
    CHALLENGE,
    FIELD_BYTES_MAX,
    FIELD_COUNT_MAX,
    HELLO,
    MESSAGE_BYTES_MAX,
    PROOF,
    WELCOME,
    Acceptor,
    ClusterMismatch,
    Done,
    HandshakeError,
    IncompatibleVersions,
    Initiator,
    MalformedHandshake,
    NameMismatch,
    Reflected,
    RefusedByPeer,
    Role,
    SameName,
    SecretRequired,
    TooLong,
    Wire,
    WrongProof,
    refusal,
)

SECRET = b"a secret of this cluster"
OTHER_SECRET = b"a secret of another cluster"
# Where the fields of an offer stand in its message.
MODE, CLUSTER, NAME, LOWEST, HIGHEST, CAPABILITIES, REQUIRED, NONCE = range(1, 9)

Meddle = Callable[[Wire], Wire]  # What somebody does to each message under way.
Transcript = Callable[[Role, int, Wire, Wire], Wire]


def nonce_of(seed: str) -> bytes:
    return Random(seed).randbytes(32)


def terms(
    cluster: str = "blue",
    lowest: int = 1,
    highest: int = 3,
    capabilities: tuple[str, ...] = ("hints", "trees"),
    required: tuple[str, ...] = (),
) -> Terms:
    return Terms(cluster, VersionRange(lowest, highest), capabilities, required)


def initiator(
    own: Terms | None = None,
    name: str = "n1",
    seed: str = "i",
    *,
    secret: bytes | None = SECRET,
    is_loopback: bool = False,
    expected: str | None = None,
) -> Initiator:
    return Initiator(
        own or terms(),
        name,
        nonce_of(seed),
        secret=secret,
        is_loopback=is_loopback,
        expected=expected,
    )


def acceptor(
    own: Terms | None = None,
    name: str = "n2",
    seed: str = "a",
    *,
    secret: bytes | None = SECRET,
    is_loopback: bool = False,
) -> Acceptor:
    return Acceptor(own or terms(), name, nonce_of(seed), secret=secret, is_loopback=is_loopback)


def unchanged(message: Wire) -> Wire:
    return message


def run(
    dialling: Initiator, dialled: Acceptor, meddle: Meddle = unchanged
) -> tuple[Done, Done, list[Wire]]:
    """The whole handshake: what the initiator got, what the acceptor got, and what was on the wire."""
    wires: list[Wire] = []

    def carry(message: Wire | None) -> Wire:
        assert message is not None
        wires.append(meddle(list(message)))
        return wires[-1]

    dialled.start()
    challenge = dialled.receive(carry(dialling.start()))
    assert challenge.done is None
    proof = dialling.receive(carry(challenge.reply))
    assert proof.done is None
    welcome = dialled.receive(carry(proof.reply))
    end = dialling.receive(carry(welcome.reply))
    assert end.done is not None
    assert welcome.done is not None
    assert end.reply is None
    return end.done, welcome.done, wires


# Honest ends.


def test_both_ends_learn_who_the_other_is() -> None:
    mine, theirs, wires = run(
        initiator(terms(highest=2, capabilities=("hints",)), expected="n2"), acceptor()
    )
    assert mine == Done("n2", 2, ("hints", "trees"))
    assert theirs == Done("n1", 2, ("hints",))
    assert [wire[0] for wire in wires] == [HELLO, CHALLENGE, PROOF, WELCOME]


def test_the_secret_and_its_key_are_never_sent() -> None:
    dialling = initiator()
    _, _, wires = run(dialling, acceptor())
    sent = b"".join(field for wire in wires for field in wire)
    assert SECRET not in sent
    assert dialling._key not in sent


def test_the_acceptor_proves_nothing_to_whom_has_proved_nothing() -> None:
    dialled = acceptor()
    dialled.start()
    challenge = dialled.receive(initiator(secret=OTHER_SECRET).start())
    assert challenge.reply is not None
    assert challenge.reply[0] == CHALLENGE
    with pytest.raises(WrongProof):
        dialled.receive([PROOF, bytes(32)])


def test_the_same_inputs_give_the_same_messages() -> None:
    assert run(initiator(), acceptor()) == run(initiator(), acceptor())


def test_fields_that_a_newer_release_adds_are_ignored_and_bound() -> None:
    def newer(message: Wire) -> Wire:
        return [*message, b"new"] if message[0] in (HELLO, CHALLENGE) else message

    dialling, dialled = initiator(), acceptor()
    dialling._mine = newer(dialling._mine)
    dialled._mine = newer(dialled._mine)
    run(dialling, dialled)
    with pytest.raises(WrongProof):  # Added under way, and not by its author.
        run(initiator(), acceptor(), newer)
    dialling, dialled = initiator(), acceptor()
    dialling._mine = newer(dialling._mine)
    with pytest.raises(WrongProof):  # Changed under way.
        run(dialling, dialled, rewriting((HELLO,), NONCE + 1, b"odd"))


def test_another_secret_is_refused_by_the_acceptor() -> None:
    with pytest.raises(WrongProof) as refused:
        run(initiator(secret=OTHER_SECRET), acceptor())
    assert refused.value.peer == "n1"


def test_another_secret_is_refused_by_the_initiator() -> None:
    dialling = initiator()
    challenge = acceptor(secret=OTHER_SECRET)._mine
    dialling.start()
    proof = dialling.receive(challenge)
    assert proof.reply is not None
    with pytest.raises(WrongProof) as refused:
        dialling.receive([WELCOME, bytes(32)])
    assert refused.value.peer == "n2"


def test_another_cluster_is_refused_by_both() -> None:
    with pytest.raises(ClusterMismatch):
        run(initiator(terms("red")), acceptor())
    dialling = initiator()
    dialling.start()
    with pytest.raises(ClusterMismatch) as refused:
        dialling.receive(acceptor(terms("red"))._mine)
    assert (refused.value.ours, refused.value.theirs) == ("blue", "red")


@pytest.mark.parametrize(
    ("dialling", "dialled", "words"),
    [
        (terms(lowest=1, highest=1), terms(lowest=2, highest=3), "upgrade"),
        (terms(lowest=4, highest=5), terms(lowest=2, highest=3), "upgrade"),
        (terms(required=("locks",)), terms(), "locks"),
        (terms(), terms(required=("locks", "moves")), "locks, moves"),
    ],
)
def test_incompatible_ends_say_why(dialling: Terms, dialled: Terms, words: str) -> None:
    with pytest.raises(IncompatibleVersions, match=words):
        run(initiator(dialling), acceptor(dialled))


def test_who_was_not_dialled_is_refused() -> None:
    """A proxy leads to n3: an honest member with the right secret, but not the one that was meant."""
    with pytest.raises(NameMismatch) as refused:
        run(initiator(expected="n2"), acceptor(name="n3"))
    assert (refused.value.expected, refused.value.actual) == ("n2", "n3")


def test_a_node_that_dials_itself_finds_out() -> None:
    with pytest.raises(SameName):
        run(initiator(name="n1"), acceptor(name="n1"))


# No secret.


def test_without_a_secret_loopback_is_enough() -> None:
    mine, theirs, _ = run(
        initiator(secret=None, is_loopback=True), acceptor(secret=None, is_loopback=True)
    )
    assert (mine.peer_name, theirs.peer_name) == ("n2", "n1")


@pytest.mark.parametrize("make", [initiator, acceptor])
def test_without_a_secret_and_loopback_nothing_begins(make: Callable[..., object]) -> None:
    with pytest.raises(SecretRequired, match="not on loopback"):
        make(secret=None)


@pytest.mark.parametrize("make", [initiator, acceptor])
@pytest.mark.parametrize("secret", [b"", b"fifteen bytes.."])
def test_a_short_secret_is_none(make: Callable[..., object], secret: bytes) -> None:
    with pytest.raises(SecretRequired, match="16 bytes"):
        make(secret=secret, is_loopback=True)


def test_one_secret_is_not_enough_for_two() -> None:
    with pytest.raises(SecretRequired, match="n1 has no cluster secret"):
        run(initiator(secret=None, is_loopback=True), acceptor(is_loopback=True))
    with pytest.raises(SecretRequired, match="this node has no cluster secret"):
        run(initiator(is_loopback=True), acceptor(secret=None, is_loopback=True))


def test_a_secret_is_not_negotiated_away() -> None:
    """Somebody says `none` to both. The initiator, who has a secret, does not go on."""

    def strip(message: Wire) -> Wire:
        if message[0] in (HELLO, CHALLENGE):
            message[MODE] = b"none"
        return message

    with pytest.raises(SecretRequired):
        run(initiator(), acceptor(), strip)
    dialling = initiator()
    dialling.start()
    with pytest.raises(SecretRequired):
        dialling.receive(strip(acceptor()._mine))


# Attacks. Each says whether it got through.


def echo_the_proof() -> bool:
    """An acceptor without the secret sends the initiator's proof back, as its own."""
    dialling = initiator()
    dialling.start()
    proof = dialling.receive(acceptor(secret=OTHER_SECRET)._mine).reply
    assert proof is not None
    dialling._own_proof = b""  # Leaves the binding of the role as the only defence.
    return dialling.receive([WELCOME, proof[1]]).done is not None


def replay_to_an_acceptor() -> bool:
    _, _, wires = run(initiator(), acceptor())
    dialled = acceptor(seed="a later nonce")
    dialled.start()
    dialled.receive(wires[0])
    return dialled.receive(wires[2]).done is not None


def replay_to_an_initiator() -> bool:
    _, _, wires = run(initiator(), acceptor())
    dialling = initiator(seed="a later nonce")
    dialling.start()
    dialling.receive(wires[1])
    return dialling.receive(wires[3]).done is not None


def rewriting(verbs: tuple[bytes, ...], index: int, field: bytes) -> Meddle:
    def meddle(message: Wire) -> Wire:
        if message[0] in verbs:
            message[index] = field
        return message

    return meddle


def rename_the_initiator() -> bool:
    dialled_saw = run(initiator(), acceptor(), rewriting((HELLO,), NAME, b"n9"))[1]
    return dialled_saw.peer_name == "n9"


def rename_the_acceptor() -> bool:
    dialling_saw = run(initiator(), acceptor(), rewriting((CHALLENGE,), NAME, b"n9"))[0]
    return dialling_saw.peer_name == "n9"


def join_two_clusters() -> bool:
    """Two clusters were given one secret. Somebody between them translates the names."""

    def translate(message: Wire) -> Wire:
        if message[0] in (HELLO, CHALLENGE):
            message[CLUSTER] = {b"red": b"blue", b"blue": b"red"}[message[CLUSTER]]
        return message

    run(initiator(terms("red")), acceptor(terms("blue")), translate)
    return True


def lower_the_version() -> bool:
    mine, theirs, _ = run(initiator(), acceptor(), rewriting((HELLO, CHALLENGE), HIGHEST, b"1"))
    return (mine.version, theirs.version) == (1, 1)


def raise_the_lowest_version() -> bool:
    run(initiator(), acceptor(), rewriting((HELLO,), LOWEST, b"2"))
    return True


def strip_capabilities() -> bool:
    theirs = run(initiator(), acceptor(), rewriting((HELLO,), CAPABILITIES, b""))[1]
    return theirs.capabilities == ()


def strip_requirements() -> bool:
    """The acceptor would refuse a peer that asks for what it lacks; n1 is made to look content."""
    run(
        initiator(terms(capabilities=("hints", "locks", "trees"), required=("hints",))),
        acceptor(),
        rewriting((HELLO,), REQUIRED, b""),
    )
    return True


def without(*indices: int, offers: str = "hello challenge") -> Transcript:
    """A transcript that leaves out these fields."""

    def blank(message: Wire, name: str) -> Wire:
        hides = name in offers.split()
        return [b"" if hides and i in indices else field for i, field in enumerate(message)]

    def transcript(role: Role, version: int, hello: Wire, challenge: Wire) -> Wire:
        return honest_transcript(
            role, version, blank(hello, "hello"), blank(challenge, "challenge")
        )

    return transcript


def without_role(role: Role, version: int, hello: Wire, challenge: Wire) -> Wire:
    return honest_transcript(Role.INITIATOR, version, hello, challenge)


honest_transcript = handshake._transcript

ATTACKS: dict[str, tuple[Callable[[], bool], Transcript]] = {
    "role": (echo_the_proof, without_role),
    "acceptor's nonce": (replay_to_an_acceptor, without(NONCE, offers="challenge")),
    "initiator's nonce": (replay_to_an_initiator, without(NONCE, offers="hello")),
    "initiator's name": (rename_the_initiator, without(NAME, offers="hello")),
    "acceptor's name": (rename_the_acceptor, without(NAME, offers="challenge")),
    "cluster": (join_two_clusters, without(CLUSTER)),
    "highest version": (lower_the_version, without(HIGHEST)),
    "lowest version": (raise_the_lowest_version, without(LOWEST)),
    "capabilities": (strip_capabilities, without(CAPABILITIES)),
    "required": (strip_requirements, without(REQUIRED)),
}


@pytest.mark.parametrize("binding", ATTACKS)
def test_an_attack_fails(binding: str) -> None:
    attack, _ = ATTACKS[binding]
    with pytest.raises(WrongProof):
        attack()


@pytest.mark.parametrize("binding", ATTACKS)
def test_the_attack_succeeds_where_its_binding_is_missing(
    binding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack, weaker = ATTACKS[binding]
    monkeypatch.setattr(handshake, "_transcript", weaker)
    assert attack()


def disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Releases that choose differently among the same versions: both must notice."""
    dialling, dialled = initiator(), acceptor()
    honest = compatible
    monkeypatch.setattr(
        "cluster.handshake.compatible", lambda a, b: 2 if a is dialled._terms else honest(a, b)
    )
    run(dialling, dialled)


def test_ends_that_speak_different_versions_find_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WrongProof):
        disagree(monkeypatch)


def test_they_do_not_where_the_spoken_version_is_not_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        handshake, "_transcript", lambda role, _, h, c: honest_transcript(role, 0, h, c)
    )
    disagree(monkeypatch)


def test_an_echoed_proof_is_called_so() -> None:
    dialling = initiator()
    dialling.start()
    proof = dialling.receive(acceptor()._mine).reply
    assert proof is not None
    with pytest.raises(Reflected, match="proof"):
        dialling.receive([WELCOME, proof[1]])


def test_an_echoed_offer_is_called_so() -> None:
    """A mirror: everything comes back, with the verb that is due and another name."""
    dialling = initiator()
    hello = dialling.start()
    mirrored = [CHALLENGE, *hello[1:]]
    mirrored[NAME] = b"n2"
    with pytest.raises(Reflected, match="nonce"):
        dialling.receive(mirrored)


def test_a_node_is_no_oracle_against_itself() -> None:
    """Somebody without the secret is dialled by n1, and dials n1 at the same time to get a proof made."""
    dialling = initiator(name="n1", seed="one")  # n1 dials "n2", which is the attacker.
    dialled = acceptor(name="n1", seed="two")
    dialled.start()
    hello = dialling.start()
    forged_hello = [HELLO, *hello[1:]]
    forged_hello[NAME] = b"n2"
    challenge = dialled.receive(forged_hello).reply
    assert challenge is not None
    forged_challenge = list(challenge)
    forged_challenge[NAME] = b"n2"
    proof = dialling.receive(forged_challenge).reply  # n1 proves itself to "n2", ...
    assert proof is not None
    with pytest.raises(WrongProof):  # ... which is no proof of "n2" to n1.
        dialled.receive(proof)


def test_a_proof_for_one_acceptor_is_none_for_another() -> None:
    """n2 is bad: it hands n1's proof on to n3, under n3's nonce."""
    dialling = initiator(expected="n2")
    dialled = acceptor(name="n3")
    dialled.start()
    challenge = dialled.receive(dialling.start()).reply
    assert challenge is not None
    as_n2 = list(challenge)
    as_n2[NAME] = b"n2"
    proof = dialling.receive(as_n2).reply
    assert proof is not None
    with pytest.raises(WrongProof):
        dialled.receive(proof)


def test_fields_are_told_apart() -> None:
    key = bytes(32)
    seen = {
        handshake._mac(key, parts)
        for parts in ([b"ab", b"c"], [b"a", b"bc"], [b"abc"], [b"", b"abc"], [b"abc", b""])
    }
    assert len(seen) == 5
    assert honest_transcript(Role.INITIATOR, 1, [b"a", b"b"], [b"c"]) != honest_transcript(
        Role.INITIATOR, 1, [b"a"], [b"b", b"c"]
    )


def test_proofs_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def spy(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return a == b

    monkeypatch.setattr(handshake, "compare_digest", spy)
    run(initiator(), acceptor())
    # Each end compares the nonces and the proof; the initiator also compares with its own proof.
    assert compared == [(32, 32)] * 5


# Malformed input.


def offer_with(index: int, field: bytes) -> Wire:
    hello = list(initiator().start())
    hello[index] = field
    return hello


MALFORMED: dict[str, Wire] = {
    "nothing": [],
    "no field": [HELLO],
    "a field too few": initiator().start()[:-1],
    "another verb": [b"SET", b"a", b"b"],
    "out of turn": [PROOF, bytes(32)],
    "mode": offer_with(MODE, b"md5"),
    "empty cluster": offer_with(CLUSTER, b""),
    "name with a line end": offer_with(NAME, b"n1\n"),
    "name not in ASCII": offer_with(NAME, "é".encode()),
    "name too long": offer_with(NAME, b"n" * 65),
    "negative version": offer_with(LOWEST, b"-1"),
    "version with zeros": offer_with(LOWEST, b"01"),
    "huge version": offer_with(HIGHEST, b"9" * 17),
    "version above the limit": offer_with(HIGHEST, b"9" * 16),
    "empty version": offer_with(HIGHEST, b""),
    "versions in the wrong order": offer_with(LOWEST, b"4"),
    "unsorted capabilities": offer_with(CAPABILITIES, b"b,a"),
    "a capability twice": offer_with(CAPABILITIES, b"a,a"),
    "an empty capability": offer_with(CAPABILITIES, b"a,,b"),
    "too many capabilities": offer_with(CAPABILITIES, b",".join(b"%04d" % i for i in range(65))),
    "unsorted requirements": offer_with(REQUIRED, b"b,a"),
    "short nonce": offer_with(NONCE, bytes(31)),
    "long nonce": offer_with(NONCE, bytes(33)),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_offers_are_refused(case: str) -> None:
    dialled = acceptor()
    dialled.start()
    with pytest.raises(MalformedHandshake):
        dialled.receive(MALFORMED[case])


@pytest.mark.parametrize("proof", [[PROOF], [PROOF, b""], [PROOF, bytes(31)], [PROOF, bytes(33)]])
def test_malformed_proofs_are_refused(proof: Wire) -> None:
    dialled = acceptor()
    dialled.start()
    dialled.receive(initiator().start())
    with pytest.raises(MalformedHandshake):
        dialled.receive(proof)


@pytest.mark.parametrize(
    "message",
    [
        [HELLO] * (FIELD_COUNT_MAX + 1),
        [HELLO, bytes(FIELD_BYTES_MAX + 1)],
        [HELLO, *[bytes(FIELD_BYTES_MAX)] * 3],
    ],
)
def test_what_is_too_long_is_refused_as_such(message: Wire) -> None:
    dialled = acceptor()
    dialled.start()
    with pytest.raises(TooLong):
        dialled.receive(message)


def test_what_is_just_not_too_long_is_taken() -> None:
    hello = initiator().start()
    room = MESSAGE_BYTES_MAX - sum(map(len, hello)) - 2 * FIELD_BYTES_MAX
    padded = [*hello, bytes(FIELD_BYTES_MAX), bytes(FIELD_BYTES_MAX), bytes(room)]
    padded += [b""] * (FIELD_COUNT_MAX - len(padded))
    dialled = acceptor()
    dialled.start()
    assert dialled.receive(padded).reply is not None


def test_an_end_takes_nothing_more_after_an_error() -> None:
    dialling, dialled = initiator(), acceptor()
    dialled.start()
    with pytest.raises(MalformedHandshake):
        dialled.receive([b"SET"])
    with pytest.raises(MalformedHandshake, match="after the end"):
        dialled.receive(dialling.start())


def test_a_wrong_proof_cannot_be_tried_again() -> None:
    dialling, dialled = initiator(), acceptor()
    dialled.start()
    challenge = dialled.receive(dialling.start()).reply
    assert challenge is not None
    proof = dialling.receive(challenge).reply
    assert proof is not None
    with pytest.raises(WrongProof):
        dialled.receive([PROOF, bytes(32)])
    with pytest.raises(MalformedHandshake, match="after the end"):
        dialled.receive(proof)


def test_an_end_takes_nothing_more_after_it_is_done() -> None:
    dialling, dialled = initiator(), acceptor()
    _, _, wires = run(dialling, dialled)
    for end, message in ((dialling, wires[3]), (dialled, wires[2])):
        with pytest.raises(MalformedHandshake, match="after the end"):
            end.receive(message)


def test_an_end_takes_nothing_before_it_started() -> None:
    with pytest.raises(MalformedHandshake, match="before the beginning"):
        acceptor().receive(initiator().start())


def test_a_refusal_reaches_the_other_end_as_printable_words() -> None:
    dialling = initiator()
    dialling.start()
    with pytest.raises(RefusedByPeer, match="did not prove"):
        dialling.receive(refusal(WrongProof("n1")))
    dialled = acceptor()
    dialled.start()
    with pytest.raises(RefusedByPeer) as refused:
        dialled.receive([handshake.REFUSED, b"a\nforged log line\x1b[2J" + b"x" * 1000])
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 300


def own_terms() -> Iterator[Terms]:
    yield terms("no spaces")
    yield terms(capabilities=("b", "a"))
    yield terms(capabilities=("a,b",))
    yield terms(capabilities=tuple(f"{i:064}" for i in range(64)))


@pytest.mark.parametrize("own", list(own_terms()))
def test_a_wrong_configuration_is_found_before_anything_is_sent(own: Terms) -> None:
    with pytest.raises(ValueError, match=r"not a valid name|own offer"):
        initiator(own)


def test_a_nonce_of_another_length_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Initiator(terms(), "n1", b"short", secret=SECRET, is_loopback=False)


wires = st.lists(st.binary(max_size=40), max_size=12)
offers = st.builds(
    lambda index, field: offer_with(index, field), st.integers(0, 8), st.binary(max_size=40)
)


@given(first=st.one_of(wires, offers), second=wires)
def test_nothing_but_typed_errors_comes_out(first: Wire, second: Wire) -> None:
    for end in (initiator(name="n3"), acceptor()):
        end.start()
        opening = [CHALLENGE, *first[1:]] if isinstance(end, Initiator) else first
        assert all(is_harmless(end, message) for message in (opening, second))


def is_harmless(end: Initiator | Acceptor, message: Wire) -> bool:
    """Whether the end was not convinced, and raised nothing but what it may."""
    try:
        return end.receive(message).done is None
    except HandshakeError as error:
        return str(error).isprintable()
