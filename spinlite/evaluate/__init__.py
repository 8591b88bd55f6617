"""What a round is judged by: held-out errors, fixed-seed samples, and outside measures."""
