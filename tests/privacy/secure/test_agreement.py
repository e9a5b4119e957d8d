"""A server that lies about who dropped out: it reads an upload, and signatures prevent it."""

import numpy as np
import pytest

pytest.importorskip("cryptography")

from fedjax_post.privacy.secure import ThresholdError, agreement, keys, protocol, shamir

SESSION, CLIENTS = protocol.Session(round=3, threshold=3), range(5)
CODES = np.random.default_rng(0).integers(0, 2**32, (len(CLIENTS), 4), np.uint32)
SIGNING = {k: bytes([100 + k]) * 32 for k in CLIENTS}
IDENTITIES = {k: keys.identity_of(private) for k, private in SIGNING.items()}


def started():
    parties = {k: protocol.start(k, SESSION, entropy=bytes([k]) * 32) for k in CLIENTS}
    return parties, {k: protocol.advertise(party) for k, party in parties.items()}


def uploaded(partners_of_0=(1, 2, 3, 4)):
    """The parties after their uploads, and these; client 0 is told of some partners alone."""
    parties, roster = started()
    shared = {k: protocol.share(party, roster) for k, party in parties.items()}
    inboxes = protocol.route({k: sealed for k, (_, sealed) in shared.items()}, SESSION)
    inboxes[0] = {k: inboxes[0][k] for k in partners_of_0}
    masked = {k: protocol.mask(p, inboxes[k], codes=CODES[k]) for k, (p, _) in shared.items()}
    return {k: p for k, (p, _) in masked.items()}, {k: x for k, (_, x) in masked.items()}, roster


def confirmed(parties, survivors):
    both = {k: agreement.confirm(parties[k], survivors, signing=SIGNING[k]) for k in survivors}
    return {k: party for k, (party, _) in both.items()}, {k: sign for k, (_, sign) in both.items()}


def test_with_one_list_the_sum_opens():
    parties, uploads, roster = uploaded()
    there = [0, 2, 3]
    parties, signatures = confirmed(parties, there)
    revealed = {
        k: agreement.reveal(parties[k], there, signatures, identities=IDENTITIES)[1] for k in there
    }
    opened = protocol.open_sum(
        {k: uploads[k] for k in there}, revealed, roster=roster, partners=CLIENTS, session=SESSION
    )
    np.testing.assert_array_equal(opened, CODES[there].sum(0, dtype=np.uint32))


LIES = {0: {0, 1, 2}, 1: {0, 1, 3, 4}, 2: {0, 2, 3, 4}, 3: {0, 3, 4}, 4: {0, 3, 4}}


def test_different_lists_open_one_upload_without_signatures():
    """The masks of client 0 are those with 1 and 2, whose keys the others give away."""
    parties, uploads, roster = uploaded(partners_of_0=(1, 2))
    answers = {k: protocol.reveal(parties[k], LIES[k])[1] for k in CLIENTS}
    secret = lambda owner, by: shamir.join(
        {k + 1: answers[k][owner] for k in by}, SESSION.threshold
    )
    found = uploads[0] - keys.stream(secret(0, [0, 3, 4]), 4)
    for partner, by in ((1, [2, 3, 4]), (2, [1, 3, 4])):
        private = secret(partner, by)
        assert keys.public_of(private) == roster[partner].masking
        key = protocol._mask_key(private, roster, SESSION, pair=(partner, 0))
        found -= protocol._signed(0, partner, keys.stream(key, 4))
    np.testing.assert_array_equal(found, CODES[0])


def test_with_signatures_nobody_answers_to_different_lists():
    parties, _, _ = uploaded(partners_of_0=(1, 2))
    both = {
        k: agreement.confirm(parties[k], LIES[k], signing=SIGNING[k])
        for k in CLIENTS
        if LIES[k] <= {k, *parties[k].inbox}
    }
    signatures = {k: signature for k, (_, signature) in both.items()}
    assert both.keys() == set(CLIENTS)
    for k, (party, _) in both.items():
        with pytest.raises(ValueError, match="did not sign this list"):
            agreement.reveal(party, LIES[k], signatures, identities=IDENTITIES)
        alone = {other: signatures[other] for other in CLIENTS if LIES[other] == LIES[k]}
        with pytest.raises(ThresholdError, match="confirmed the list, fewer than threshold=3"):
            agreement.reveal(party, LIES[k], alone, identities=IDENTITIES)


def test_a_client_confirms_one_list_of_those_that_it_has_masks_with():
    parties, _, _ = uploaded(partners_of_0=(1, 2))
    with pytest.raises(ValueError, match=r"clients \[3\] uploaded, but sent no shares"):
        agreement.confirm(parties[0], {0, 1, 3}, signing=SIGNING[0])
    with pytest.raises(ValueError, match="client 3 uploaded, but is not in the list"):
        agreement.confirm(parties[3], {0, 1, 2}, signing=SIGNING[3])
    with pytest.raises(ThresholdError, match="2 clients uploaded"):
        agreement.confirm(parties[3], {0, 3}, signing=SIGNING[3])
    party, _ = agreement.confirm(parties[3], {0, 2, 3}, signing=SIGNING[3])
    with pytest.raises(ValueError, match="client 3 confirms one list"):
        agreement.confirm(party, {0, 1, 3}, signing=SIGNING[3])
    with pytest.raises(ValueError, match="client 3 did not confirm the survivors"):
        agreement.reveal(party, {0, 1, 3}, {}, identities=IDENTITIES)


def test_keys_that_a_server_put_in_place_of_a_clients_are_noticed():
    parties, roster = started()
    signatures = {k: agreement.sign_keys(party, signing=SIGNING[k]) for k, party in parties.items()}
    given = {"identities": IDENTITIES, "session": SESSION}
    agreement.check_keys(roster, signatures, **given)
    own = protocol.advertise(protocol.start(1, SESSION, entropy=b"s" * 32))
    with pytest.raises(ValueError, match="client 1 did not sign its keys"):
        agreement.check_keys(roster | {1: own}, signatures, **given)
    with pytest.raises(ValueError, match="client 4 did not sign its keys"):
        agreement.check_keys(roster, {**signatures, 4: signatures[3]}, **given)
    later = SESSION._replace(round=4)
    with pytest.raises(ValueError, match="client 0 did not sign its keys"):
        agreement.check_keys(roster, signatures, identities=IDENTITIES, session=later)
