"""What the command `import` leaves: a trained model of Hugging Face as a folder that runs start from."""
