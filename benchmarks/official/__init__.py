"""What the parity scripts share, and one file per official repository: its code runs there on our weights and batches."""
