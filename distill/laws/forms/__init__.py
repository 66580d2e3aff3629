"""What a law is: its parameters, the base class, the published forms, laws by name and in files."""
