import torch

from featinv_fast.evaluate import autoencoder_of


def test_the_autoencoder_of_a_checkpoint(golden_checkpoint, golden_model, relative_norm):
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    autoencoder = golden_model.autoencoder
    with torch.no_grad():
        mean, _ = autoencoder.encoder(images)
        expected = autoencoder.decode(mean * autoencoder.decoder.latent_scale)
    for batch_size in (2, 8):
        found = autoencoder_of(golden_checkpoint, batch_size=batch_size)(images)
        assert not found.requires_grad
        assert relative_norm(found, expected) < 1e-5
