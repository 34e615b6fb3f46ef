"""A name for a node whose owner gave none: two words drawn from its key, the same on every machine.

Only for people's eyes: names are neither unique nor checked; keys are.
"""

_MANNERS = (
    "able brave bright brisk calm candid clever cosy curious deft eager early fair fond frank gentle glad "
    "honest humble jolly keen kind lively lucky mellow merry mild modest neat nimble patient plain polite "
    "prompt proud quick quiet ready robust serene sharp shy sincere sleek smart snug sober solid spry steady "
    "still sturdy subtle sunny swift tender tidy true upbeat vivid warm wise witty zesty"
)
_ANIMALS = (
    "badger beaver bison bittern bobcat buzzard caribou cicada civet condor cormorant crane cricket curlew "
    "dingo dolphin dormouse dunlin eider ermine falcon ferret finch gannet gecko gibbon goshawk grebe hare "
    "heron hoopoe ibex ibis jackdaw jay kestrel kingfisher lapwing lark lemur linnet lynx marmot marten "
    "merlin mole newt nuthatch ocelot oriole osprey otter owl pika plover puffin raven redstart robin seal "
    "shrew siskin stoat swift"
)


def name_of(public_key: bytes) -> str:
    """The name made from a key, such as "quiet-otter"; `public_key` has 32 bytes."""
    return f"{_pick(_MANNERS, public_key[0])}-{_pick(_ANIMALS, public_key[1])}"


def _pick(words: str, number: int) -> str:
    choices = words.split()
    return choices[number % len(choices)]
