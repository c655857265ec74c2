"""Staying alive and detecting deaths: heartbeat, witness, death watch, sweeper."""
