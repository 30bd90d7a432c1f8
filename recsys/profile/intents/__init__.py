"""What a user is after, in words: interests from the history, tags of the catalogue, and why an item fits (RecGPT)."""
