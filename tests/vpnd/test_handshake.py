"""What WireGuard's stamps tell, and what they do not."""

from __future__ import annotations

import pytest

from vpnd.handshake import EitherKey, HandshakeWatch, KeyInForce, WatchedKey

FIRST, SECOND, THIRD = (1000, 1), (1120, 2), (1240, 3)


def watched() -> HandshakeWatch:
    """A peer whose first key was set at 0 and taken up by a handshake at 1."""
    watch = HandshakeWatch()
    watch.installed("aaaaaaaa", None, 0.0, replaces=False)
    assert watch.observe(FIRST, 0, 0, 1.0)
    return watch


def in_force(watch: HandshakeWatch) -> str:
    return "" if watch.in_force is None else watch.in_force.key_id


def test_a_first_key_is_in_force_with_the_first_handshake() -> None:
    watch = HandshakeWatch()
    watch.installed("aaaaaaaa", None, 0.0, replaces=False)
    watch.observe(None, 0, 0, 0.5)
    assert in_force(watch) == ""
    watch.observe(FIRST, 0, 0, 0.6)
    assert in_force(watch) == "aaaaaaaa"
    assert watch.waiting is None


def test_a_replacement_is_in_force_only_after_a_later_handshake() -> None:
    watch = watched()
    watch.installed("bbbbbbbb", FIRST, 106.0, replaces=True)
    watch.observe(FIRST, 0, 0, 118.0)
    assert in_force(watch) == "aaaaaaaa"
    watch.observe(SECOND, 0, 0, 121.0)
    assert in_force(watch) == "bbbbbbbb"


def test_a_handshake_seen_right_after_a_replacement_proves_nothing() -> None:
    """It may have been made with the key before, by the end that answered first."""
    watch = watched()
    watch.installed("bbbbbbbb", FIRST, 118.0, replaces=True)
    watch.observe(SECOND, 0, 0, 121.0)
    watch.observe(SECOND, 0, 0, 140.0)
    assert in_force(watch) == "aaaaaaaa"
    watch.observe(THIRD, 0, 0, 241.0)
    assert in_force(watch) == "bbbbbbbb"


def test_the_stamp_is_the_one_read_before_the_psk_was_set() -> None:
    """A handshake between two dumps, before the installation, does not count for the new key."""
    watch = watched()
    watch.installed("bbbbbbbb", SECOND, 121.0, replaces=True)
    watch.observe(SECOND, 0, 0, 135.0)
    assert in_force(watch) == "aaaaaaaa"


def test_a_first_key_replaced_before_its_handshake_was_seen_is_in_force_all_the_same() -> None:
    """The dump before the replacement shows a handshake: there was no other key."""
    watch = HandshakeWatch()
    watch.installed("aaaaaaaa", None, 0.0, replaces=False)
    watch.installed("bbbbbbbb", FIRST, 0.5, replaces=True)
    assert in_force(watch) == "aaaaaaaa"
    assert watch.waiting is not None
    watch.observe(FIRST, 0, 0, 20.0)
    assert in_force(watch) == "aaaaaaaa"
    watch.observe(SECOND, 0, 0, 121.0)
    assert in_force(watch) == "bbbbbbbb"


def test_a_handshake_right_after_two_first_keys_is_at_least_of_the_older_one() -> None:
    watch = HandshakeWatch()
    watch.installed("aaaaaaaa", None, 0.0, replaces=False)
    watch.installed("bbbbbbbb", None, 0.5, replaces=True)
    watch.observe(FIRST, 0, 0, 1.0)
    assert in_force(watch) == "aaaaaaaa"
    watch.observe(SECOND, 0, 0, 121.0)
    assert in_force(watch) == "bbbbbbbb"


def adopted(
    stamp: tuple[int, int] | None,
    *,
    waiting: WatchedKey | None = None,
    in_force: KeyInForce | None = None,
    doubtful: bool = False,
) -> HandshakeWatch:
    """A watch that starts at 5000 on the boot clock, when the wall clock says 1000."""
    watch = HandshakeWatch()
    watch.adopt(
        stamp,
        100,
        now=5000.0,
        wall=1000.0,
        waiting=waiting,
        in_force=in_force,
        doubtful=doubtful,
    )
    return watch


def test_an_adopted_session_has_the_age_of_its_stamp() -> None:
    watch = adopted((900, 0))
    assert watch.session_age(5000.0) == pytest.approx(100.0)
    assert not watch.dead(25, 5000.0)


@pytest.mark.parametrize("stamp", [(1100, 0), (100, 0)], ids=["in the future", "15 minutes old"])
def test_an_adopted_session_whose_age_cannot_be_true_is_dead_until_something_is_heard(
    stamp: tuple[int, int],
) -> None:
    watch = adopted(stamp)
    assert watch.session_age(5000.0) is None
    assert watch.dead(25, 5000.0)
    watch.observe(stamp, 100, 0, 5001.0)
    assert watch.dead(25, 5001.0)
    watch.observe(stamp, 200, 0, 5002.0)
    assert not watch.dead(25, 5002.0)
    assert watch.dead(25, 5200.0)


OLD = KeyInForce("aaaaaaaa", 4700.0, 4710.0)


def test_an_adopted_key_still_waits_while_there_was_no_handshake() -> None:
    waiting = WatchedKey("bbbbbbbb", 4990.0, (890, 0), replaces=True)
    watch = adopted((890, 0), waiting=waiting, in_force=OLD)
    assert in_force(watch) == "aaaaaaaa"
    watch.observe((1010, 0), 0, 0, 5010.0)
    assert in_force(watch) == "bbbbbbbb"


def test_an_adopted_key_is_in_force_by_a_handshake_while_nobody_looked() -> None:
    waiting = WatchedKey("bbbbbbbb", 4900.0, (790, 0), replaces=True)
    watch = adopted((950, 0), waiting=waiting, in_force=OLD)
    assert in_force(watch) == "bbbbbbbb"


def test_a_handshake_right_after_the_installation_while_nobody_looked_leaves_a_doubt() -> None:
    waiting = WatchedKey("bbbbbbbb", 4947.0, (790, 0), replaces=True)
    watch = adopted((950, 0), waiting=waiting, in_force=OLD)
    assert watch.doubtful
    assert in_force(watch) == ""


def test_a_key_that_was_being_set_is_never_shown_as_in_force() -> None:
    watch = adopted((950, 0), in_force=OLD, doubtful=True)
    assert in_force(watch) == "aaaaaaaa"
    watch.observe((1010, 0), 0, 0, 5010.0)
    assert in_force(watch) == ""
    watch.installed("cccccccc", (1010, 0), 5020.0, replaces=True)
    watch.observe((1130, 0), 0, 0, 5130.0)
    assert in_force(watch) == "cccccccc"
    assert not watch.doubtful


def test_a_session_that_was_old_already_is_not_overdue_at_once() -> None:
    watch = watched()
    watch.observe(FIRST, 0, 500, 121.5)
    watch.observe(FIRST, 0, 600, 170.0)
    watch.installed("bbbbbbbb", FIRST, 170.0, replaces=True)
    assert not watch.overdue(25, 184.0)
    assert watch.overdue(25, 186.0)


def test_overdue_when_bytes_were_sent_and_the_session_was_not_renewed() -> None:
    watch = watched()
    watch.installed("bbbbbbbb", FIRST, 106.0, replaces=True)
    watch.observe(FIRST, 0, 500, 121.5)
    assert not watch.overdue(0, 137.0)
    watch.observe(FIRST, 0, 600, 130.0)
    assert not watch.overdue(25, 134.0)
    assert watch.overdue(25, 137.0)
    assert watch.overdue(0, 137.0)


def test_overdue_by_keepalives_alone() -> None:
    watch = watched()
    watch.installed("bbbbbbbb", FIRST, 106.0, replaces=True)
    watch.observe(FIRST, 0, 500, 121.5)
    assert not watch.overdue(25, 160.0)
    assert watch.overdue(25, 162.0)


def test_overdue_when_a_session_under_the_key_in_force_is_not_renewed() -> None:
    """A long interval: no newer key waits, and the peer may have booted anew."""
    watch = watched()
    assert in_force(watch) == "aaaaaaaa"
    watch.observe(FIRST, 0, 500, 121.5)
    watch.observe(FIRST, 0, 600, 130.0)
    assert not watch.overdue(25, 134.0)
    assert watch.overdue(25, 137.0)
    watch.observe((1137, 0), 10, 700, 137.5)
    assert not watch.overdue(25, 138.0)


def test_never_overdue_without_keepalive_and_traffic() -> None:
    watch = watched()
    watch.installed("bbbbbbbb", FIRST, 106.0, replaces=True)
    watch.observe(FIRST, 0, 500, 121.5)
    assert not watch.overdue(0, 5000.0)


def test_a_first_key_that_nobody_takes_up_is_overdue_after_a_keepalive() -> None:
    watch = HandshakeWatch()
    watch.installed("aaaaaaaa", None, 0.0, replaces=False)
    watch.observe(None, 0, 0, 30.0)
    assert not watch.overdue(25, 40.0)
    assert watch.overdue(25, 41.0)


def test_dead_only_where_something_was_sent_that_calls_for_a_handshake() -> None:
    watch = watched()
    assert not watch.dead(25, 190.0)
    assert watch.dead(25, 197.0)
    assert not watch.dead(0, 10000.0)


def test_dead_without_keepalives_once_bytes_were_sent_into_a_session_that_is_over() -> None:
    watch = watched()
    watch.observe(FIRST, 500, 500, 100.0)
    watch.observe(FIRST, 500, 500, 125.0)  # sent while the session was young: proves nothing
    assert not watch.dead(0, 10000.0)
    watch.observe(FIRST, 500, 648, 190.0)
    assert not watch.dead(0, 194.0)
    assert watch.dead(0, 197.0)
    watch.observe(SECOND, 592, 680, 200.0)
    assert not watch.dead(0, 10000.0)


@pytest.mark.parametrize("keepalive", [0, 25])
def test_dead_where_even_the_first_handshake_never_came(keepalive: int) -> None:
    watch = HandshakeWatch()
    watch.installed("aaaaaaaa", None, 0.0, replaces=False)
    watch.observe(None, 0, 148, 1.0)
    assert not watch.dead(keepalive, 10000.0)
    watch.observe(None, 0, 296, 6.0)
    assert not watch.dead(keepalive, 194.0)
    assert watch.dead(keepalive, 196.0)


def test_a_session_adopted_too_old_is_dead_once_bytes_were_sent_and_nothing_came() -> None:
    watch = adopted((100, 0))
    watch.observe((100, 0), 100, 500, 5001.0)
    assert not watch.dead(0, 5300.0)
    watch.observe((100, 0), 100, 648, 5100.0)
    assert watch.dead(0, 5300.0)
    watch.observe((1305, 0), 192, 648, 5305.0)
    assert not watch.dead(0, 5306.0)


def undecided(watch: HandshakeWatch, now: float) -> tuple[str, ...]:
    either = watch.undecided(now)
    return () if either is None else either.key_ids


def test_a_handshake_right_after_a_replacement_leaves_two_keys_until_the_next_one() -> None:
    """The far end may have been taken off and put back: its sessions are of the newer key alone."""
    watch = watched()
    assert undecided(watch, 50.0) == ()
    watch.installed("bbbbbbbb", FIRST, 60.0, replaces=True)
    assert undecided(watch, 60.0) == ()
    watch.observe(SECOND, 0, 0, 60.5)
    assert undecided(watch, 61.0) == ("aaaaaaaa", "bbbbbbbb")
    assert watch.either is not None
    assert watch.either.until == 60.5 + 180.0
    watch.observe(THIRD, 0, 0, 181.0)
    assert (in_force(watch), undecided(watch, 181.0)) == ("bbbbbbbb", ())


def test_two_keys_are_dead_with_their_session() -> None:
    watch = watched()
    watch.installed("bbbbbbbb", FIRST, 60.0, replaces=True)
    watch.observe(SECOND, 0, 0, 60.5)
    assert undecided(watch, 240.0) != ()
    assert undecided(watch, 241.0) == ()
    assert watch.either is not None  # nothing is called in force from then on


def test_a_third_key_joins_those_that_may_be_alive() -> None:
    watch = watched()
    watch.installed("bbbbbbbb", FIRST, 60.0, replaces=True)
    watch.observe(SECOND, 0, 0, 60.5)
    watch.installed("cccccccc", SECOND, 100.0, replaces=True)
    assert undecided(watch, 100.0) == ("aaaaaaaa", "bbbbbbbb")
    watch.observe(THIRD, 0, 0, 101.0)
    assert undecided(watch, 101.0) == ("aaaaaaaa", "bbbbbbbb", "cccccccc")


def test_of_two_first_keys_either_may_be_alive() -> None:
    watch = HandshakeWatch()
    watch.installed("aaaaaaaa", None, 0.0, replaces=False)
    watch.installed("bbbbbbbb", None, 0.5, replaces=True)
    watch.observe(FIRST, 0, 0, 1.0)
    assert undecided(watch, 1.0) == ("aaaaaaaa", "bbbbbbbb")


def test_a_key_that_may_have_been_set_or_not_is_one_of_two() -> None:
    watch = watched()
    watch.doubt("bbbbbbbb")
    assert undecided(watch, 100.0) == ("aaaaaaaa", "bbbbbbbb")
    watch.installed("cccccccc", FIRST, 110.0, replaces=True)
    watch.observe(SECOND, 0, 0, 121.0)
    assert undecided(watch, 121.0) == ()
    assert in_force(watch) == "cccccccc"


def test_a_peer_that_is_set_anew_has_one_key_alone() -> None:
    """Also on another interface, with another WireGuard key, or after its lifetime."""
    watch = watched()
    watch.installed("bbbbbbbb", FIRST, 60.0, replaces=True)
    watch.observe(SECOND, 0, 0, 60.5)
    watch.reset()
    watch.installed("cccccccc", None, 70.0, replaces=False)
    watch.observe(THIRD, 0, 0, 71.0)
    assert (in_force(watch), undecided(watch, 71.0)) == ("cccccccc", ())


def test_after_a_restart_two_keys_are_still_two() -> None:
    either = EitherKey(("aaaaaaaa", "bbbbbbbb"), 5100.0)
    key = KeyInForce("aaaaaaaa", 4900.0, 4901.0)
    waiting = WatchedKey("bbbbbbbb", 4990.0, (980, 0), replaces=True)
    watch = HandshakeWatch()
    watch.adopt(
        (980, 0), 100, now=5000.0, wall=1000.0,
        waiting=waiting, in_force=key, doubtful=False, either=either,
    )  # fmt: skip
    assert undecided(watch, 5000.0) == ("aaaaaaaa", "bbbbbbbb")
    seen = HandshakeWatch()
    seen.adopt(
        (992, 0), 100, now=5000.0, wall=1000.0,
        waiting=waiting, in_force=key, doubtful=False, pending_id="bbbbbbbb",
    )  # fmt: skip
    assert undecided(seen, 5000.0) == ("aaaaaaaa", "bbbbbbbb")
    assert seen.doubtful
