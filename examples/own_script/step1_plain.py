"""Answers a question about an image: which of its patches is the brightest, or the darkest?"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

SAMPLES, BATCH, EPOCHS, PATCHES, PIXELS, WIDTH, WORDS = 480, 64, 2, 4, 8, 32, 2
torch.set_default_dtype(torch.float64)  # so that losses can be compared


class LanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleDict(
            {str(layer): nn.TransformerEncoderLayer(WIDTH, 4, 64, dropout=0.0, batch_first=True) for layer in range(2)}
        )
        self.head = nn.Linear(WIDTH, PATCHES)

    def forward(self, features, questions):
        hidden = torch.cat([features, self.words(questions)], dim=1)
        for block in self.blocks.values():
            hidden = block(hidden)
        return self.head(hidden[:, -1])


torch.manual_seed(0)
images = torch.randn(SAMPLES, PATCHES, PIXELS) + 2 * torch.randn(SAMPLES, PATCHES, 1)
questions = torch.randint(WORDS, (SAMPLES, 1))
brightness = images.mean(dim=-1) * (1 - 2 * questions)
dataset = TensorDataset(images, questions, brightness.argmax(dim=-1))

encoder = [nn.Flatten(), nn.Linear(PATCHES * PIXELS, 64), nn.GELU(), nn.Linear(64, PATCHES * WIDTH)]
vision = nn.Sequential(*encoder, nn.Unflatten(1, (PATCHES, WIDTH)))
language = LanguageModel()
parameters = [*vision.parameters(), *language.parameters()]
optimizer = torch.optim.AdamW(parameters, lr=0.005)
loader = DataLoader(dataset, batch_size=BATCH)

step = 0
for _ in range(EPOCHS):
    for pixels, words, answers in loader:
        step += 1
        loss = cross_entropy(language(vision(pixels), words), answers)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss.item():.10f}")
