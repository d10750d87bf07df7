"""`python -m segagent_rt`."""

from segagent_rt.cli import main

main()
