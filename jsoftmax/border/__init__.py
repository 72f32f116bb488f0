"""Where a call comes in: arguments are checked, converted, and named in errors, before any compute."""
