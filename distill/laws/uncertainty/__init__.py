"""How sure: bootstraps, profiles, joint fits, comparison of forms, held-out runs, designs."""
