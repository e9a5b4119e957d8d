"""Laws of the protocol: what opens is the sum, whoever drops out; fewer than the threshold do not.

Every round here is one of real keys, shares and messages, between clients that are played in turn.
"""

import numpy as np
import pytest
import scipy.stats

pytest.importorskip("cryptography")

from fedjax_post.core.wire import total_bytes
from fedjax_post.privacy.secure import ThresholdError, cost, keys, protocol, shamir

SIZE, CLIENTS = 5, range(5)
SESSION = protocol.Session(round=3, threshold=3)
CODES = np.random.default_rng(0).integers(0, 2**32, (len(CLIENTS), SIZE), np.uint32)


class Round:
    """A round in which some clients stop after a step."""

    def __init__(self, *, no_shares=(), no_upload=(), no_answer=(), session=SESSION, codes=CODES):
        self.session, self.codes = session, codes
        parties = {
            k: protocol.start(k, session, entropy=bytes([k]) * 32) for k in range(len(codes))
        }
        self.roster = protocol.gather(
            {k: protocol.advertise(party) for k, party in parties.items()}, session
        )
        shared = {
            k: protocol.share(party, self.roster)
            for k, party in parties.items()
            if k not in no_shares
        }
        self.sealed = {k: sealed for k, (_, sealed) in shared.items()}
        self.inboxes = protocol.route(self.sealed, session)
        masked = {
            k: protocol.mask(party, self.inboxes[k], codes=codes[k])
            for k, (party, _) in shared.items()
            if k not in no_upload
        }
        self.uploads = {k: upload for k, (_, upload) in masked.items()}
        self.parties = {k: party for k, (party, _) in masked.items()}
        self.revealed = {
            k: protocol.reveal(party, self.uploads)[1]
            for k, party in self.parties.items()
            if k not in no_answer
        }

    def open(self, revealed=None):
        return protocol.open_sum(
            self.uploads, self.revealed if revealed is None else revealed,
            roster=self.roster, partners=self.sealed, session=self.session,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("stops", "there"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"no_shares": [1]}, [0, 2, 3, 4]),  # it has no masks with anybody
        ({"no_upload": [0, 4]}, [1, 2, 3]),  # the others have masks with it
        ({"no_answer": [2, 3]}, [0, 1, 2, 3, 4]),  # its upload arrived, and counts
        ({"no_shares": [0], "no_upload": [1], "no_answer": [2]}, None),
    ],
)
def test_what_opens_is_the_sum_of_the_uploads_that_arrived(stops, there):
    if there is None:
        with pytest.raises(ThresholdError, match="2 clients revealed shares, fewer than threshold"):
            Round(**stops).open()
        return
    np.testing.assert_array_equal(Round(**stops).open(), CODES[there].sum(0, dtype=np.uint32))


def test_the_result_does_not_depend_on_who_answers():
    """Any three of the five shares open the same sum."""
    played = Round(no_upload=[1])
    answers = [{k: played.revealed[k] for k in some} for some in ([0, 2, 3], [2, 3, 4], [0, 3, 4])]
    opened = [played.open(some) for some in answers]
    for each in opened:
        np.testing.assert_array_equal(each, CODES[[0, 2, 3, 4]].sum(0, dtype=np.uint32))


@pytest.mark.parametrize(
    ("stops", "did"),
    [
        ({"no_shares": [0, 1, 2]}, "2 clients sent shares"),
        ({"no_upload": [0, 1, 2]}, "2 clients uploaded"),
    ],
)
def test_below_the_threshold_no_step_goes_on(stops, did):
    with pytest.raises(ThresholdError, match=f"round 3: {did}, fewer than threshold=3"):
        Round(**stops)


def test_a_roster_below_the_threshold_is_refused_by_server_and_client():
    party = protocol.start(0, SESSION, entropy=bytes(32))
    adverts = {0: protocol.advertise(party)}
    for step in (lambda: protocol.gather(adverts, SESSION), lambda: protocol.share(party, adverts)):
        with pytest.raises(ThresholdError, match="1 clients advertised keys"):
            step()


def chi_square(words):
    """The p-value of the words' bytes being uniform."""
    counts = np.bincount(np.asarray(words, "<u4").view(np.uint8), minlength=256)
    return scipy.stats.chisquare(counts).pvalue


def test_a_single_upload_is_uniform_and_the_codes_are_not():
    small = np.random.default_rng(1).integers(0, 2**20, (3, 50_000), np.uint32)
    played = Round(codes=small)
    for k, upload in played.uploads.items():
        assert 1e-4 < chi_square(upload) < 1 - 1e-4
        assert chi_square(small[k]) < 1e-12
    # nor do two clients' uploads add up to anything but noise
    assert chi_square(played.uploads[0] + played.uploads[1]) > 1e-4


def test_masks_are_new_in_every_round():
    first, second = (Round(session=SESSION._replace(round=r)).uploads[0] for r in (0, 1))
    assert (first != second).all()


def test_a_client_reveals_only_one_of_the_two_shares():
    played = Round(no_upload=[4])
    party, _ = protocol.reveal(played.parties[0], played.uploads)
    with pytest.raises(ValueError, match="client 0 reveals once in a round"):
        protocol.reveal(party, [0, 1, 2])
    with pytest.raises(ValueError, match=r"clients \[7\] uploaded, but sent no shares"):
        protocol.reveal(played.parties[0], [0, 1, 7])


def test_a_threshold_of_half_is_refused_by_server_and_client():
    """Two of four could be told one thing, and two the other."""
    half = SESSION._replace(threshold=2)
    parties = [protocol.start(k, half, entropy=bytes([k]) * 32) for k in range(4)]
    adverts = {party.client_id: protocol.advertise(party) for party in parties}
    for step in (
        lambda: protocol.gather(adverts, half),
        lambda: protocol.share(parties[0], adverts),
    ):
        with pytest.raises(ValueError, match="threshold=2 must be more than half of the 4 clients"):
            step()


def test_what_was_changed_on_the_way_is_noticed():
    played = Round()
    inbox = played.inboxes[0] | {1: bytes([played.inboxes[0][1][0] ^ 1]) + played.inboxes[0][1][1:]}
    with pytest.raises(ValueError, match="a sealed message was changed"):
        protocol.reveal(played.parties[0]._replace(inbox=inbox), played.uploads)
    swapped = played.inboxes[0] | {1: played.inboxes[0][2]}
    with pytest.raises(ValueError, match="a sealed message was changed"):
        protocol.reveal(played.parties[0]._replace(inbox=swapped), played.uploads)
    roster = played.roster | {0: played.roster[1]}
    with pytest.raises(ValueError, match="two public keys are equal"):
        protocol.share(protocol.start(0, SESSION, entropy=bytes(32)), roster)
    with pytest.raises(ValueError, match="not the keys that client 2 advertised"):
        protocol.share(protocol.start(2, SESSION, entropy=b"x" * 32), played.roster)


def test_wrong_shares_of_a_key_are_noticed():
    played = Round(no_upload=[4])
    by = {k: shares | {4: shares[3]} for k, shares in played.revealed.items()}
    with pytest.raises(ValueError, match="not those of client 4's key|not those of one secret"):
        played.open(by)


def test_the_bill_is_the_length_of_the_messages():
    played, n = Round(), len(CLIENTS)
    id_of = cost.ID
    up = len(b"".join(played.roster[0])) + sum(id_of + len(x) for x in played.sealed[0].values())
    up += sum(id_of + len(x) for x in played.revealed[0].values())
    down = sum(id_of + len(b"".join(advert)) for advert in played.roster.values())
    down += sum(id_of + len(x) for x in played.inboxes[0].values())
    down += len(np.packbits([k in played.uploads for k in CLIENTS]))
    bill = cost.protocol_bytes(n)
    assert (total_bytes(bill.up), total_bytes(bill.down)) == (up, down)


def test_the_prime_is_one():
    """By Fermat's test, to 38 bases."""
    for base in range(2, 40):
        assert pow(base, shamir.PRIME - 1, shamir.PRIME) == 1
    assert 2**256 < shamir.PRIME < 2 ** (8 * shamir.SHARE_BYTES)


def test_fewer_shares_than_the_threshold_fit_every_secret():
    """Given two shares of three, each secret belongs to exactly one polynomial."""
    random = [bytes([i]) * 64 for i in (1, 2)]
    shares = shamir.split(bytes(31) + b"a", [1, 2, 3], random)
    at = {x: int.from_bytes(y) for x, y in shares.items()}
    for secret in (0, 12345, 2**256 - 1):  # the third share that makes it so
        # f(3) of the parabola through (0, secret), (1, f(1)), (2, f(2))
        third = (secret - 3 * at[1] + 3 * at[2]) % shamir.PRIME
        forged = {1: shares[1], 2: shares[2], 3: third.to_bytes(shamir.SHARE_BYTES)}
        assert shamir.join(forged, 3) == secret.to_bytes(32)
    with pytest.raises(ThresholdError, match="2 shares are fewer than the threshold of 3"):
        shamir.join({1: shares[1], 2: shares[2]}, 3)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: shamir.split(bytes(32), [1, 1], [bytes(64)]), "points must be distinct"),
        (lambda: shamir.split(bytes(32), [0, 1], [bytes(64)]), "points must be distinct"),
        (lambda: shamir.split(bytes(32), [1], [bytes(64)]), "cannot reach the threshold of 2"),
        (lambda: shamir.split(bytes(31), [1, 2], [bytes(64)]), "a secret has 32 bytes, got 31"),
        (lambda: protocol.start(0, SESSION, entropy=b"short"), "entropy must be 32 random bytes"),
        (lambda: protocol.gather({}, protocol.Session(0, 1)), "threshold=1 must be at least 2"),
    ],
)
def test_numbers_out_of_range_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_keys_agree_and_have_one_purpose():
    alice, bob = bytes(range(32)), bytes(range(1, 33))
    one = keys.agree(alice, keys.public_of(bob), b"a")
    assert one == keys.agree(bob, keys.public_of(alice), b"a")
    assert one != keys.agree(bob, keys.public_of(alice), b"b")
