"""What a selection is worth: loss and exact match of a tuned model, balance, overlap, known answers."""
