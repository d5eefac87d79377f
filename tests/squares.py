"""Code of a data set of one's own, to be written into a module beside a study: 80 squares, dark and light by turns."""

SQUARES = """class Squares:
    classes = ['dark', 'light']
    def __len__(self):
        return 80
    def __getitem__(self, i):
        g = torch.Generator().manual_seed(i)
        return (torch.rand(3, 20, 20, generator=g) * 120 + 120 * (i % 2)).to(torch.uint8), i % 2

def squares():
    return Squares()
"""
