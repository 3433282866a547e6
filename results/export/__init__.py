"""What serving engines read: one engine a file."""
