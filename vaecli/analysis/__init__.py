"""What a trained model, or codes alone, can be found to do; numbers only, no pictures."""
