"""One swarm for all tests in this folder: starting four nodes costs a minute."""
