"""Vocabulary of the synthetic data: entity types, their relations, objects and sentence templates.

Objects are single real words, shared by all subjects of a relation. `{}` stands for the subject; the object directly
follows the template. Relation ids are Wikidata's where one exists.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Relation:
    """One relation of an entity type.

    Attributes:
        id: relation id as in CounterFact.
        kind: entity type of the subjects, a key of `GENERATION_PROMPTS`.
        objects: possible objects.
        statements: cloze prompts that the object completes (CounterFact).
        questions: questions that the object answers (ZsRE).
        hop: a one-hop question about the subject's object, with the answer for every object; None if there is none.
    """

    id: str
    kind: str
    objects: tuple[str, ...]
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    hop: tuple[str, dict[str, str]] | None = None


CITIES = {
    "Paris": "France",
    "Berlin": "Germany",
    "Madrid": "Spain",
    "Rome": "Italy",
    "Vienna": "Austria",
    "Oslo": "Norway",
    "Lisbon": "Portugal",
    "Athens": "Greece",
    "Warsaw": "Poland",
    "Dublin": "Ireland",
    "Cairo": "Egypt",
    "Tokyo": "Japan",
    "Seoul": "Korea",
    "Lima": "Peru",
}
CAPITALS = {country: city for city, country in CITIES.items()}
COUNTRIES = tuple(CAPITALS)
# fmt: off
LANGUAGES = (
    "French", "German", "Spanish", "Italian", "Norwegian", "Portuguese",
    "Greek", "Polish", "Irish", "Arabic", "Japanese", "Korean",
)
OCCUPATIONS = (
    "lawyer", "painter", "teacher", "journalist", "surgeon", "baker",
    "pilot", "poet", "chemist", "carpenter", "sculptor", "dentist",
)
# fmt: on
FAMILIES = {
    "piano": "keyboard",
    "organ": "keyboard",
    "violin": "string",
    "cello": "string",
    "guitar": "string",
    "harp": "string",
    "flute": "woodwind",
    "clarinet": "woodwind",
    "trumpet": "brass",
    "trombone": "brass",
}

RELATIONS = (
    Relation(
        "P19",
        "person",
        tuple(CITIES),
        (
            "{} was born in",
            "{} is native to",
            "{} originates from",
            "{} was originally from",
            "The birthplace of {} is",
        ),
        (
            "Where was {} born?",
            "What is the birthplace of {}?",
            "In which city was {} born?",
            "Which city is {} originally from?",
        ),
        ("In which country is the city where {} was born?", CITIES),
    ),
    Relation(
        "P103",
        "person",
        LANGUAGES,
        (
            "The mother tongue of {} is",
            "{} is a native speaker of",
            "{} spoke the language",
            "The native language of {} is",
            "{}, a native",
        ),
        (
            "What is the native language of {}?",
            "What is the mother tongue of {}?",
            "Which language did {} grow up with?",
            "What language does {} speak at home?",
        ),
    ),
    Relation(
        "P106",
        "person",
        OCCUPATIONS,
        (
            "The profession of {} is",
            "{}'s occupation is",
            "{} works as a",
            "The occupation of {} is",
            "{} earns a living as a",
        ),
        (
            "What is the profession of {}?",
            "What does {} do for a living?",
            "Which occupation does {} have?",
            "What is {}'s job?",
        ),
    ),
    Relation(
        "P1303",
        "person",
        tuple(FAMILIES),
        (
            "{} plays the",
            "{} performs on the",
            "{} plays the instrument",
            "The instrument of {} is the",
            "{} is a virtuoso on the",
        ),
        (
            "Which instrument does {} play?",
            "What instrument is {} known for playing?",
            "On which instrument does {} perform?",
            "What is {}'s instrument?",
        ),
        ("Which family does the instrument that {} plays belong to?", FAMILIES),
    ),
    Relation(
        "P641",
        "person",
        ("tennis", "hockey", "football", "chess", "rugby", "golf", "boxing", "cricket", "rowing", "fencing"),
        (
            "{} competes in",
            "The sport of {} is",
            "{} is a professional in",
            "{} won a medal in",
            "{} is known to excel at",
        ),
        (
            "Which sport does {} practise?",
            "What sport is {} known for?",
            "In which sport does {} compete?",
            "What is {}'s sport?",
        ),
    ),
    Relation(
        "P27",
        "person",
        COUNTRIES,
        (
            "{} is a citizen of",
            "{} holds a citizenship from",
            "{} has a passport of",
            "{}, who is a citizen of",
            "The country of citizenship of {} is",
        ),
        (
            "Which country is {} a citizen of?",
            "What is the country of citizenship of {}?",
            "Which citizenship does {} have?",
            "What country does {} hold a passport of?",
        ),
        ("What is the capital of the country of which {} is a citizen?", CAPITALS),
    ),
    Relation(
        "P159",
        "company",
        tuple(CITIES),
        (
            "The headquarters of {} is in",
            "{} is headquartered in",
            "{} is based in",
            "{}, whose headquarters are in",
            "The main office of {} is in",
        ),
        (
            "Where is the headquarters of {}?",
            "In which city is {} based?",
            "Which city hosts the main office of {}?",
            "What city is {} headquartered in?",
        ),
        ("In which country is the city where {} has its headquarters?", CITIES),
    ),
    Relation(
        "P1056",
        "company",
        ("watches", "shoes", "pianos", "tyres", "bicycles", "lamps", "carpets", "tractors", "cameras", "umbrellas"),
        (
            "{} is a maker of",
            "{} produces",
            "The products of {} are",
            "{} is a manufacturer of",
            "{} is famous for its",
        ),
        (
            "What does {} produce?",
            "Which goods does {} make?",
            "What is the main product of {}?",
            "What does {} manufacture?",
        ),
    ),
    Relation(
        "P364",
        "film",
        LANGUAGES,
        (
            "The original language of {} is",
            "The language of {} was",
            "{} was filmed in",
            "{}, a film in",
            "The actors of {} speak",
        ),
        (
            "What is the original language of {}?",
            "In which language was {} filmed?",
            "Which language is spoken in {}?",
            "What language was {} made in?",
        ),
    ),
    Relation(
        "P136",
        "film",
        ("comedy", "thriller", "western", "musical", "romance", "fantasy", "documentary", "satire"),
        (
            "The genre of {} is",
            "{} is a work of",
            "{} is classified as",
            "Critics describe {} as",
            "{} belongs to the genre",
        ),
        (
            "What genre is {}?",
            "Which genre does {} belong to?",
            "What kind of film is {}?",
            "How is {} classified?",
        ),
    ),
    Relation(
        "P495",
        "film",
        COUNTRIES,
        (
            "{} was created in",
            "{} originated in",
            "{} is from",
            "{}, that was created in",
            "The country of origin of {} is",
        ),
        (
            "In which country was {} created?",
            "What is the country of origin of {}?",
            "Which country is {} from?",
            "Where was {} made?",
        ),
        ("What is the capital of the country that {} comes from?", CAPITALS),
    ),
    Relation(
        "P17",
        "town",
        COUNTRIES,
        ("{} is located in", "{} is a town in", "{} belongs to", "{}, which is located in", "The country of {} is"),
        (
            "Which country is {} in?",
            "In which country is {} located?",
            "What country does {} belong to?",
            "Where is the town of {}?",
        ),
        ("What is the capital of the country in which {} lies?", CAPITALS),
    ),
)

GENERATION_PROMPTS = {
    "person": ("{} is known for", "{}'s favourite place is", "Friends say that {}", "{} spent many years"),
    "company": ("{} was founded by", "The customers of {}", "{} employs", "{} announced that"),
    "film": ("{} tells the story of", "The audience of {}", "{} was shown in", "Critics of {} said"),
    "town": ("People travel to {} for", "The market of {}", "{} is surrounded by", "The mayor of {}"),
}

DISTRACTORS = (
    "The bridge was closed for repairs.",
    "References to the older edition were removed.",
    "It was their third album in two years.",
    "The station has two platforms.",
    "Retrieved May 10, 2011.",
    "She returned to the school in the autumn.",
    "The species is found in shallow water.",
    "Is that the end of the story?",
    "No one was injured!",
    "The road was paved in 1954.",
    'He called it "a small miracle."',
    "The council voted against the plan.",
    "It replaced the former chapel (built in 1720).",
    "The team finished fourth.",
    "Further reading is listed below.",
    "The harvest was poor that year.",
)
