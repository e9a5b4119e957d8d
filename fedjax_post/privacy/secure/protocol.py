"""Secure aggregation between real clients and a server: one pure function for each step.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017,
figure 4, for a server that follows the protocol but is curious. `agreement` adds what is needed
against one that lies.

| step | client | server |
| --- | --- | --- |
| 0, keys | `advertise` | `gather`: the roster, U1 |
| 1, shares | `share` | `route`: to the clients that sent shares, U2 |
| 2, upload | `mask` | the clients whose uploads arrived, U3 |
| 3, opening | `reveal` | `open_sum` |

A client may drop out at any point. While at least `threshold` are left after every step, the result
is the sum, modulo 2^32, of the uploads that arrived, whichever clients these are. Nobody learns a
single upload unless `threshold` clients reveal their shares of it to the server.

Ids are the server's names of clients, from 0. All randomness of a client comes from 32 bytes of
entropy, such as `secrets.token_bytes(32)`, that it uses in one round only. Vectors are codes of
`fixed_point`, flattened. Masks are key streams of ChaCha20 (`keys`).
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

from fedjax_post.privacy.secure import keys, shamir
from fedjax_post.privacy.secure.shamir import ThresholdError


class Session(NamedTuple):
    """What clients and server agree on before a round."""

    round: int
    threshold: int  # least number of clients after every step; more than half of the roster


class Advert(NamedTuple):
    """What a client sends in step 0: two public keys of 32 bytes."""

    sealing: bytes
    masking: bytes


class Secrets(NamedTuple):
    """What a client keeps to itself during a round; each has 32 bytes."""

    sealing: bytes  # private keys
    masking: bytes
    own: bytes  # seed of the mask that it shares with nobody
    coefficients: bytes  # seed of the polynomials that share the last two


class Held(NamedTuple):
    """Another client's shares, which a client holds until step 3."""

    masking: bytes
    own: bytes


class Party(NamedTuple):
    """One client in one round; a step returns the party for the next step."""

    client_id: int
    session: Session
    secrets: Secrets
    roster: Mapping[int, Advert] = {}  # U1
    held: Held | None = None  # its shares of its own secrets
    inbox: Mapping[int, bytes] = {}  # the others' shares, sealed, from the clients of U2
    confirmed: frozenset[int] | None = None  # U3 as it signed it, see `agreement`
    revealed: bool = False


def start(client_id: int, session: Session, *, entropy: bytes) -> Party:
    """Returns a client before a round.

    Args:
      client_id: the server's name of it, from 0.
      session: of the round.
      entropy: 32 random bytes, used in no other round.

    Raises:
      ValueError: for another number of bytes.
    """
    if len(entropy) != keys.KEY_BYTES:
        raise ValueError(f"entropy must be {keys.KEY_BYTES} random bytes, got {len(entropy)}")
    secrets = Secrets(*(keys.derive(entropy, name.encode()) for name in Secrets._fields))
    return Party(client_id, session, secrets)


def advertise(party: Party) -> Advert:
    """Returns the public keys of a client: step 0."""
    return Advert(keys.public_of(party.secrets.sealing), keys.public_of(party.secrets.masking))


def gather(adverts: Mapping[int, Advert], session: Session) -> dict[int, Advert]:
    """Returns the roster that the server sends to all clients of it, by ascending id.

    Raises:
      ThresholdError: for fewer clients than the threshold.
      ValueError: if two clients have a public key in common, or the threshold is below 2 or not
        above half of the clients.
    """
    if session.threshold < 2:
        raise ValueError(
            f"threshold={session.threshold} must be at least 2: a sum of one upload is that upload"
        )
    check_number(adverts, session, "advertised keys")
    if 2 * session.threshold <= len(adverts):
        raise ValueError(
            f"threshold={session.threshold} must be more than half of the {len(adverts)} clients: "
            "else a server could tell one half that a client dropped out, the other half that it "
            "stayed, and open its upload"
        )
    public = [key for advert in adverts.values() for key in advert]
    if len(set(public)) < len(public):
        raise ValueError("two public keys are equal; every client needs entropy of its own")
    return dict(sorted(adverts.items()))


def share(party: Party, roster: Mapping[int, Advert]) -> tuple[Party, dict[int, bytes]]:
    """Returns shares of a client's secrets, sealed for each other client of the roster: step 1.

    Raises:
      ThresholdError: for a roster of fewer clients than the threshold.
      ValueError: if the client's own keys are not in it, and as for `gather`.
    """
    gather(roster, party.session)
    own_id, secrets = party.client_id, party.secrets
    if roster.get(own_id) != advertise(party):
        raise ValueError(f"the roster has not the keys that client {own_id} advertised")
    size, count = shamir.COEFFICIENT_BYTES, party.session.threshold - 1
    drawn = keys.stream_bytes(secrets.coefficients, 2 * count * size)
    random = [drawn[i : i + size] for i in range(0, len(drawn), size)]
    points = [_point(other) for other in roster]
    masking = shamir.split(secrets.masking, points, random[:count])
    own = shamir.split(secrets.own, points, random[count:])
    party = party._replace(roster=roster, held=Held(masking[_point(own_id)], own[_point(own_id)]))
    sealed = {
        other: keys.seal(
            _sealing_key(party, by=own_id, to=other),
            masking[_point(other)] + own[_point(other)],
            _pair(party.session, own_id, other),
        )
        for other in roster
        if other != own_id
    }
    return party, sealed


def route(
    sealed: Mapping[int, Mapping[int, bytes]], session: Session
) -> dict[int, dict[int, bytes]]:
    """Returns what the server passes on: for each client of U2, the others' messages to it.

    Args:
      sealed: of each client that sent shares, by receiver.
      session: of the round.

    Raises:
      ThresholdError: if fewer clients than the threshold sent shares.
    """
    check_number(sealed, session, "sent shares")
    return {to: {by: sealed[by][to] for by in sorted(sealed) if by != to} for to in sorted(sealed)}


def mask(
    party: Party, inbox: Mapping[int, bytes], *, codes: np.ndarray
) -> tuple[Party, np.ndarray]:
    """Returns a client's upload, `[size]` uint32: step 2.

    Args:
      party: after `share`.
      inbox: sealed shares of the other clients of U2, by sender.
      codes: `[size]` uint32.

    Raises:
      ThresholdError: if U2 has fewer clients than the threshold.
      ValueError: for senders that are not in the roster, or codes that are not uint32.
    """
    own_id, session = party.client_id, party.session
    if strangers := inbox.keys() - (party.roster.keys() - {own_id}):
        raise ValueError(f"clients {sorted(strangers)} sent shares, but no keys before")
    if codes.dtype != np.uint32:
        raise ValueError(f"codes must be uint32, got {codes.dtype}; see fixed_point.encode")
    check_number({*inbox, own_id}, session, "sent shares")
    total = codes + keys.stream(party.secrets.own, codes.size)
    for other in inbox:
        key = _mask_key(party.secrets.masking, party.roster, session, pair=(own_id, other))
        total += _signed(own_id, other, keys.stream(key, codes.size))
    return party._replace(inbox=inbox), total


def reveal(party: Party, survivors: Collection[int]) -> tuple[Party, dict[int, bytes]]:
    """Returns a share of every client of U2, itself included: step 3.

    Of a client whose upload arrived it is the share of the seed of its own mask, of one that
    dropped out the share of its masking key. Both of one client would open its upload.

    Args:
      party: after `mask`.
      survivors: U3, the clients whose uploads arrived.

    Raises:
      ThresholdError: for fewer survivors than the threshold.
      ValueError: for survivors that are not in U2, a message that was changed, or a second
        call in one round.
    """
    if party.revealed or party.held is None:
        raise ValueError(f"client {party.client_id} reveals once in a round, after its upload")
    if strangers := set(survivors) - {*party.inbox, party.client_id}:
        raise ValueError(f"clients {sorted(strangers)} uploaded, but sent no shares before")
    check_number(set(survivors), party.session, "uploaded")
    found = {party.client_id: party.held}
    for by, sealed in party.inbox.items():
        key = _sealing_key(party, by=by, to=party.client_id)
        text = keys.unseal(key, sealed, _pair(party.session, by, party.client_id))
        found[by] = Held(text[: shamir.SHARE_BYTES], text[shamir.SHARE_BYTES :])
    shares = {by: each.own if by in survivors else each.masking for by, each in found.items()}
    return party._replace(revealed=True), shares


def open_sum(
    uploads: Mapping[int, np.ndarray],
    revealed: Mapping[int, Mapping[int, bytes]],
    *,
    roster: Mapping[int, Advert],
    partners: Collection[int],
    session: Session,
) -> np.ndarray:
    """Returns the sum of the survivors' codes modulo 2^32, `[size]` uint32: step 3.

    Args:
      uploads: of the survivors, U3.
      revealed: by each client that answered in step 3.
      roster: of the round.
      partners: U2, the clients that sent shares.
      session: of the round.

    Raises:
      ThresholdError: if fewer clients than the threshold uploaded or answered.
      ValueError: if shares are not those of the keys in the roster.
    """
    check_number(uploads, session, "uploaded")
    check_number(revealed, session, "revealed shares")
    secret_of = lambda owner: shamir.join(
        {_point(by): shares[owner] for by, shares in revealed.items()}, session.threshold
    )
    total = np.stack(list(uploads.values())).sum(axis=0, dtype=np.uint32)
    for owner in uploads:
        total -= keys.stream(secret_of(owner), total.size)
    for absent in set(partners) - set(uploads):
        private = secret_of(absent)
        if keys.public_of(private) != roster[absent].masking:
            raise ValueError(f"the revealed shares are not those of client {absent}'s key")
        for other in uploads:
            key = _mask_key(private, roster, session, pair=(absent, other))
            total -= _signed(other, absent, keys.stream(key, total.size))
    return total


def check_number(clients: Collection[int], session: Session, did: str) -> None:
    """Raises ThresholdError if fewer clients than the threshold did something."""
    if len(clients) < session.threshold:
        raise ThresholdError(
            f"round {session.round}: {len(clients)} clients {did}, fewer than "
            f"threshold={session.threshold}; nothing can be opened, start a new round"
        )


def _point(client_id: int) -> int:
    return client_id + 1  # the secret is at 0


def _signed(client_id: int, other: int, numbers: np.ndarray) -> np.ndarray:
    """Returns the mask as the client adds it: positive for the lower id of the two."""
    return numbers if client_id < other else np.negative(numbers)


def _pair(session: Session, by: int, to: int) -> bytes:
    return b"%d from %d to %d" % (session.round, by, to)


def _mask_key(
    private: bytes, roster: Mapping[int, Advert], session: Session, *, pair: tuple[int, int]
) -> bytes:
    """Returns the key of the mask of a pair, from the private key of the first."""
    purpose = b"mask " + _pair(session, min(pair), max(pair))
    return keys.agree(private, roster[pair[1]].masking, purpose)


def _sealing_key(party: Party, *, by: int, to: int) -> bytes:
    """Returns the key of what one client seals for another; the party is one of them."""
    other = to if by == party.client_id else by
    purpose = b"seal " + _pair(party.session, by, to)
    return keys.agree(party.secrets.sealing, party.roster[other].sealing, purpose)
