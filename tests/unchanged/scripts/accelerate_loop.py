"""Hugging Face Accelerate: prepare, accumulate, gather metrics of an uneven last batch, save and load the state."""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main():
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    set_seed(11)
    inputs = torch.randn(50, 4)
    dataset = TensorDataset(inputs, (inputs.sum(1) > 0).long())
    model = nn.Linear(4, 2)
    model, optimizer, loader = accelerator.prepare(
        model, torch.optim.AdamW(model.parameters(), lr=0.1), DataLoader(dataset, batch_size=8, shuffle=True)
    )
    for batch, labels in loader:
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(batch), labels)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    hits = [accelerator.gather_for_metrics(model(batch).argmax(1) == labels) for batch, labels in loader]
    accelerator.print(f"accuracy {torch.cat(hits).float().mean().item():.4f} over {len(torch.cat(hits))} samples")
    accelerator.save_state("accelerate-state")
    accelerator.wait_for_everyone()
    accelerator.load_state("accelerate-state")
    print(f"process {accelerator.process_index} of {accelerator.num_processes}: loss {loss.item():.6f}")
    print(f"main: {accelerator.is_main_process}, type: {accelerator.distributed_type}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
