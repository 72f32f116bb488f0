"""The entry of every public call: its arguments are checked and converted before anything is computed."""
