"""What commands print for people, and what people write."""
