"""The network: patches, positions, masks, encoder, decoder, loss, heads."""
