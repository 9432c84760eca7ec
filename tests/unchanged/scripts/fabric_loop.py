"""Lightning Fabric: it finds the ranks in torchelastic's variables, and wraps model, optimizer and data loader."""

import lightning_fabric
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main():
    fabric = lightning_fabric.Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    fabric.seed_everything(5)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    inputs = torch.randn(32, 4)
    dataset = TensorDataset(inputs, inputs.mean(1, keepdim=True))
    loader = fabric.setup_dataloaders(DataLoader(dataset, batch_size=8, shuffle=True))
    for batch, targets in loader:
        loss = nn.functional.mse_loss(model(batch), targets)
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        fabric.print(f"loss of rank 0: {loss.item():.6f}")
        print(f"rank {fabric.global_rank} of {fabric.world_size}: loss {loss.item():.6f}")
    mean = fabric.all_reduce(loss, reduce_op="mean")
    fabric.save("fabric.ckpt", {"model": model, "step": 4})
    fabric.barrier()
    state = fabric.load("fabric.ckpt")
    print(f"rank {fabric.global_rank}: mean {mean.item():.6f}, loaded step {state['step']}")


if __name__ == "__main__":
    main()
