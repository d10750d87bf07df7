"""Training of the demo bundle. Not in the wheel; run `python -m segagent_rt_training`."""
