"""Everyday nouns: their words, and the ImageNet classes that stand behind them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EverydayNoun:
    """A category of the training photos, and the words for it.

    Attributes:
        category: its name in the index of photos; also its singular.
        plural: what several of them are called.
        synonyms: other words that name the same things.
        classes: ImageNet's numbers of things that are called so.
    """

    category: str
    plural: str
    synonyms: tuple[str, ...]
    classes: tuple[int, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """Singular, plural and synonyms."""
        return self.category, self.plural, *self.synonyms


_TABLE = """
person | people | human | 400 445 608 610 617 652 655 689 775 834 842 869 981 982 983
car | cars | automobile | 436 468 479 511 581 609 627 656 661 751 817
bicycle | bicycles | bike | 444 671
motorcycle | motorcycles | motorbike | 665 670
wine glass | wine glasses | goblet | 572 966
bottle | bottles | | 440 720 737 898 899 901 907
book | books | | 917 921 922
cup | cups | mug | 504 967 968
chair | chairs | | 423 559 765 857
bowl | bowls | | 659 809
handbag | handbags | purse | 636 748
suitcase | suitcases | luggage | 
sink | sinks | washbasin | 896
potted plant | potted plants | houseplant | 738
knife | knives | | 499 623
traffic light | traffic lights | stoplight | 920
toilet | toilets | | 861
dining table | dining tables | table | 532
broccoli | broccolis | | 937
fork | forks | | 
backpack | backpacks | rucksack | 414
oven | ovens | stove | 827 766
boat | boats | | 472 484 554 576 625 780 814 871 914
refrigerator | refrigerators | fridge | 760
spoon | spoons | | 618 910
stop sign | stop signs | | 919
vase | vases | | 883
dog | dogs | puppy | 151-268
sports ball | sports balls | ball | 429 430 522 574 722 768 805 852 890
cat | cats | kitten | 281-285
clock | clocks | | 409 530 892
tennis racket | tennis rackets | racket | 752
bird | birds | | 7-24 80-100 127-146
cell phone | cell phones | mobile phone | 487 528
apple | apples | | 948
horse | horses | pony | 339
cow | cows | | 345 346
teddy bear | teddy bears | | 850
remote | remotes | remote control | 761
bench | benches | | 703
banana | bananas | | 954
keyboard | keyboards | | 508 810 878
tv | tvs | television | 598 664 782 851
bus | buses | | 654 779 874
couch | couches | sofa | 831
truck | trucks | lorry | 555 569 675 717 864 867
laptop | laptops | notebook | 620 681
mouse | mice | computer mouse | 673
microwave | microwaves | | 651
pizza | pizzas | | 963
umbrella | umbrellas | parasol | 879
airplane | airplanes | plane | 404 895
bed | beds | | 520 564
tie | ties | necktie | 457 906
toaster | toasters | | 859
parking meter | parking meters | | 704
skis | pairs of skis | | 795
elephant | elephants | | 101 385 386
"""
"""Chosen by instances in photos of the training split whose objects are all labelled, crowds
included, and by classes behind them: one instance and a class, or eight instances."""


def _rows(table: str) -> Iterator[EverydayNoun]:
    for line in table.strip().splitlines():
        category, plural, synonyms, classes = (part.strip() for part in line.split("|"))
        ends = (numbers.split("-") for numbers in classes.split())
        found = tuple(n for e in ends for n in range(int(e[0]), int(e[-1]) + 1))
        yield EverydayNoun(category, plural, (synonyms,) if synonyms else (), found)


NOUNS = tuple(_rows(_TABLE))
INDEX = {noun.category: at for at, noun in enumerate(NOUNS)}
"""Each category's place in `NOUNS`."""
