"""The words that keys are made of, as adjective-noun pairs."""

_ADJECTIVES = """
ancient amber bitter blue bold brave bright brisk calm careful clever cold crisp curious daring deep distant eager
early elegant faint famous fierce fluffy gentle giant glad golden grand green happy hidden hollow humble icy jolly
keen lazy lively lonely loud lucky mellow mighty modest narrow noble numerous odd pale patient plain polite proud
quick quiet rapid rare rough royal scarlet shiny silent slow soft solid spicy steady strange sturdy sudden sunny
swift tender tidy tiny vivid wandering warm wild wise witty young zealous
"""

_NOUNS = """
acorn anchor apple arrow badger bagel banjo barrel basket beacon bell berry bicycle blanket boat bottle bridge broom
bucket button cabin camel candle canoe carpet castle cello chair cherry clock cloud clover comet compass copper
cottage cradle crown curtain daisy desk dolphin dragon drum eagle engine falcon feather fiddle flag flute forest
fountain garden garlic glacier glove goose guitar hammer harbor hazel helmet heron hill honey island jacket jungle
kettle kite ladder lantern lemon library lizard magnet maple marble meadow mirror mitten monkey mountain needle
nutmeg oak oar ocean olive onion orchard otter oven owl paddle panda parrot peach pebble pencil pepper piano pigeon
pillow planet pocket pony pumpkin puzzle rabbit radish raven ribbon river rocket saddle sailor salmon sandal
"""

_DISTRACTOR_NOUNS = """
saucer scarf school shadow shield shovel signal skater sled snail sofa spoon spruce squash stable statue stove street
sugar summit swallow table tailor teapot temple tent thimble thistle thunder ticket tiger timber tomato torch tower
trumpet tulip tunnel turkey turtle umbrella valley velvet village violin waffle wagon wallet walnut walrus whale
wheel whistle willow window winter wizard wolf yacht zebra
"""

ADJECTIVES: tuple[str, ...] = tuple(_ADJECTIVES.split())
NOUNS: tuple[str, ...] = tuple(_NOUNS.split())
DISTRACTOR_NOUNS: tuple[str, ...] = tuple(_DISTRACTOR_NOUNS.split())
"""Nouns of the sentences that only look like needles; no needle's key has one of them."""
