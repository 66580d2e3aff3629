"""Looking at a run or at the code from outside: profile, replay, dry run, imports."""
