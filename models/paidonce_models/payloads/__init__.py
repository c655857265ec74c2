"""Values as bytes: encoding, splitting into content-addressed parts, caching, reassembling."""
