"""What programs in containers write: cleaned of secrets, kept in bounded files, told to whoever asks."""
