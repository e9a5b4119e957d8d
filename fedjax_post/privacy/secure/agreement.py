"""Secure sums under a server that lies: signed keys, and one list of survivors for all clients.

Bonawitz et al., CCS 2017, figure 4, the additions against active adversaries. The steps of
`protocol` alone are for a server that follows them. One that does not could put keys of its own in
place of the clients', and read every upload; or tell clients different lists of those who dropped
out, and collect the shares of all that hides one upload (`tests/privacy/secure/test_agreement.py`).

| step of `protocol` | with signatures |
| --- | --- |
| 0, keys | a client also sends `sign_keys`; the server passes all signatures on |
| 1, shares | a client calls `check_keys` before `protocol.share` |
| 3, opening | a client sends `confirm`, receives the others', and calls `reveal` of this module |

Every client needs the public signing keys of the others from somebody other than the server. Two
lists cannot both be confirmed if 2 threshold > n + c, for n clients of which c work with the
server. A signature has 64 bytes: each client sends two of them, and receives one of each other
client in steps 0 and 3. Ed25519 (RFC 8032).
"""

from collections.abc import Collection, Mapping

from fedjax_post.privacy.secure import keys, protocol
from fedjax_post.privacy.secure.protocol import Advert, Party, Session


def sign_keys(party: Party, *, signing: bytes) -> bytes:
    """Returns the signature of the keys that a client advertises.

    Args:
      party: after `protocol.start`.
      signing: the client's private signing key, 32 bytes, the same in all rounds.
    """
    advert = protocol.advertise(party)
    return keys.sign(signing, _keys_text(party.session, party.client_id, advert))


def check_keys(
    roster: Mapping[int, Advert],
    signatures: Mapping[int, bytes],
    *,
    identities: Mapping[int, bytes],
    session: Session,
) -> None:
    """Checks that the keys of a roster are those that its clients signed.

    Args:
      roster: U1, as the server sent it.
      signatures: of `sign_keys`, by client.
      identities: public signing keys of all clients, not from the server.
      session: of the round.

    Raises:
      ValueError: naming the first client whose signature is missing or of other keys.
    """
    for client, advert in roster.items():
        _check_signature(
            client, signatures, identities, _keys_text(session, client, advert), "its keys"
        )


def confirm(party: Party, survivors: Collection[int], *, signing: bytes) -> tuple[Party, bytes]:
    """Returns the party for `reveal`, and its signature of the list of survivors.

    Args:
      party: after `protocol.mask`.
      survivors: U3, the clients whose uploads arrived, as the server says.
      signing: as for `sign_keys`.

    Raises:
      ThresholdError: for fewer survivors than the threshold.
      ValueError: for a list without this client, or with one that it shares no mask with; and
        for a second list in one round.
    """
    listed, own_id = frozenset(survivors), party.client_id
    if party.confirmed is not None:
        raise ValueError(f"client {own_id} confirms one list of survivors in a round")
    if own_id not in listed:
        raise ValueError(f"client {own_id} uploaded, but is not in the list of survivors")
    if strangers := listed - {*party.inbox, own_id}:
        raise ValueError(f"clients {sorted(strangers)} uploaded, but sent no shares before")
    protocol.check_number(listed, party.session, "uploaded")
    signature = keys.sign(signing, _survivors_text(party.session, listed))
    return party._replace(confirmed=listed), signature


def reveal(
    party: Party,
    survivors: Collection[int],
    signatures: Mapping[int, bytes],
    *,
    identities: Mapping[int, bytes],
) -> tuple[Party, dict[int, bytes]]:
    """Returns the shares of `protocol.reveal`, if enough survivors confirmed the same list.

    Args:
      party: after `confirm`.
      survivors: the list that it confirmed.
      signatures: of `confirm`, by client.
      identities: as for `check_keys`.

    Raises:
      ThresholdError: if fewer survivors than the threshold confirmed the list.
      ValueError: for another list than the confirmed one, or a signature of another list.
    """
    listed = frozenset(survivors)
    if listed != party.confirmed:
        raise ValueError(f"client {party.client_id} did not confirm the survivors {sorted(listed)}")
    signed = listed & signatures.keys()
    for client in sorted(signed):
        _check_signature(
            client, signatures, identities, _survivors_text(party.session, listed), "this list"
        )
    protocol.check_number(signed, party.session, "confirmed the list")
    return protocol.reveal(party, listed)


def _check_signature(client, signatures, identities, text, what) -> None:
    known = client in identities and client in signatures
    if not (known and keys.is_signed(identities[client], signatures[client], text)):
        raise ValueError(f"client {client} did not sign {what}; reveal nothing, leave the round")


def _keys_text(session: Session, client: int, advert: Advert) -> bytes:
    return b"keys of %d in round %d " % (client, session.round) + b"".join(advert)


def _survivors_text(session: Session, survivors: Collection[int]) -> bytes:
    return b"survivors of round %d: " % session.round + repr(sorted(survivors)).encode()
