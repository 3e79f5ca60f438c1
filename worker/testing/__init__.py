"""For the tests of users: their app on a broker in memory, a clock that obeys, and proofs."""
