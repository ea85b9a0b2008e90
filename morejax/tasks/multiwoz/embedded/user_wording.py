"""What users say: templates by act (see `phrase` for their syntax)."""

from __future__ import annotations

Templates = tuple[str, ...]

GREETINGS: Templates = (
    "hello, ",
    "hi there. ",
    "good morning. ",
    "hey, ",
    "good afternoon! ",
    "hi, ",
    "greetings. ",
    "",
)

OPEN: Templates = (
    "I am [looking for|after|searching for|hoping to find] {wish}[, please|]",
    "[could|can|would] you [please |kindly |]find me {wish}?",
    "I need {wish}[ for my trip| for our visit|]",
    "do you [know of|happen to have] {wish}?",
    "I would [like|love] {wish}[, please|]",
    "is there {wish} [on your list|in Wrenford|you could suggest]?",
    "we are visiting [soon|next week] and want {wish}",
    "what have you got in the way of {wish}?",
    "my [friends|parents|colleagues] and I [fancy|are keen on] {wish}",
    "help me [track down|pick out|choose] {wish}",
    "[any chance of|any tips for] {wish}?",
    "I was told you can [recommend|suggest] {wish}",
)
OPEN_NEXT: Templates = (
    "I [also|still] need {wish}",
    "next[ up|], [could|can] you [look for|find] {wish}?",
    "[great|lovely|wonderful]. [besides|on top of] that I want {wish}",
    "one more thing, I am after {wish}",
    "now [please |]help me with {wish}",
    "[thanks|perfect]. then there is the matter of {wish}",
    "while you are at it, I would like {wish}",
    "we [could use|will also want] {wish} [too|as well]",
    "moving on, do you have {wish}?",
    "and what about {wish}?",
)
TELL: Templates = (
    "{wish}[, please| would be best| sounds right|, if possible]",
    "[let us go with|I would go for|we would prefer|I prefer] {wish}",
    "[ideally|preferably] {wish}",
    "make that {wish}[, please|]",
    "I [had in mind|was thinking of] {wish}",
    "oh, {wish}, [thank you|thanks]",
    "[hm|well], {wish} I [think|suppose]",
    "it should be {wish}",
    "[yes|sure], {wish}",
    "my [preference|pick] would be {wish}",
)
DONT_CARE: Templates = (
    "the {topic} [does not|really does not] matter to me",
    "[any|whatever] {topic} is fine[ by me|]",
    "I do not [mind about|care about] the {topic}",
    "I am [easy|flexible|relaxed] about the {topic}",
    "no [particular |special |]preference on {topic}",
    "I have no [strong |]feelings on the {topic}",
    "surprise me with the {topic}",
    "the {topic} is up to you",
    "we are [open|not fussy] when it comes to {topic}",
)
CHANGE: Templates = (
    "[actually|wait|hold on|on second thought], make it {wish} instead",
    "[sorry|oops], I meant {wish}",
    "I changed my mind, [let us try|I want|I would rather have] {wish}",
    "[hm|hmm], could we switch to {wish}?",
    "scratch that, [we want|I am after] {wish}",
    "my [partner|wife|husband|sister] would [rather|sooner] have {wish}",
    "let me correct myself: {wish}, please",
    "no, not that. {wish} would [suit|fit] us better",
)
RELAX: Templates = (
    "[how|what] about {wish} [then|instead]?",
    "[too bad|a pity|what a shame]. {wish} [would do|will do|is fine too]",
    "[alright|okay|fine], try {wish}",
    "in that case [I will take|look for|let us go with] {wish}",
    "could you check {wish} instead?",
    "[oh|ah] well, then {wish}, please",
    "do you have {wish} [at least|perhaps]?",
    "my second choice would be {wish}",
)
DELEGATE: Templates = (
    "just [pick|choose] one[ for me|] and [give|send|tell] me {asks}",
    "whichever you like best, I [only|just] need {asks}",
    "select any of them and let me have {asks}",
    "you decide, but [include|do mention] {asks}",
    "take the one you [favour|prefer] and share {asks}",
    "any will do, so long as I get {asks}",
    "go with your favourite. what is {asks}?",
    "I leave the choice to you, just note {asks}",
)
ASK: Templates = (
    "[can|could|may] I [have|get] {asks}[, please|]?",
    "what [is|would be] {asks}?",
    "[please |]tell me {asks}",
    "[could|would] you [give|send] me {asks}?",
    "I [would like|need|want] {asks}[, please|]",
    "do you [know|have] {asks}?",
    "let me [have|know] {asks}",
    "[kindly|please] share {asks}[ with me|]",
    "I would be glad to have {asks}",
    "{asks}[, please| would be helpful]",
)
APPRECIATE: Templates = (
    "that sounds [lovely|good|perfect].",
    "[great|excellent|nice], I like that.",
    "[sounds|seems] like a good [fit|choice].",
    "[wonderful|brilliant|super].",
    "that one will do.",
    "[okay|right], that works.",
    "just what I [wanted|hoped for].",
    "I am happy with that.",
)
BOOK: Templates = (
    "[please |]book it {terms}[, please|]",
    "[can|could] you [reserve|book] [that|it] {terms}?",
    "I [want|would like] a reservation {terms}",
    "[go ahead and|yes,] book {terms}",
    "make a booking {terms}",
    "[reserve|hold] it {terms}",
    "let us [take|have] it {terms}",
    "we would like to [come|book] {terms}",
    "put us down {terms}",
)
BOOK_TRAIN: Templates = (
    "[please |]book [seats|tickets] {terms}",
    "[can|could] you reserve [seats|a ride] {terms}?",
    "I [want|need|would like] [tickets|places] {terms}",
    "[yes|sure], get tickets {terms}",
    "make a booking {terms}",
    "put me down for that train, {terms}",
    "[go ahead|fine], buy tickets {terms}",
    "let us travel on that one, {terms}",
)
REFERENCE: Templates = (
    "and [give|send|tell] me the [reference number|booking reference]",
    "I [will need|need] the [reference|confirmation] number",
    "and let me have the [reference|booking] code",
    "please [note|include] the reference[ number|]",
    "with a reference number, please",
    "what will the [reference|confirmation] number be?",
    "do not forget the reference number",
    "I want the booking number as well",
)
ASK_ALSO: Templates = (
    "plus {asks}, please",
    "[also|and] {asks}",
    "and {asks} too",
    "then {asks} as well",
    "besides, {asks}, please",
    "add {asks} to it",
    "I need {asks} as well",
    "what about {asks}?",
)
REBOOK: Templates = (
    "[then|okay,] try {terms}[, please| instead]",
    "would it [work|be possible] {terms}?",
    "[how|what] about {terms}?",
    "[could|can] we do {terms} instead?",
    "let us [move|change] it, {terms}",
    "we could [also |]come {terms}",
    "alright, {terms} then",
    "see if [there is room|they are free] {terms}",
)
ASK_AGAIN: Templates = (
    "[and|but] [what about|you left out] {asks}",
    "you [did not mention|forgot] {asks}",
    "I still [need|want] {asks}",
    "[sorry|excuse me], I also asked for {asks}",
    "could you add {asks} as well?",
    "and {asks}, please?",
    "thanks, but I was also hoping for {asks}",
    "one detail is missing, namely {asks}",
)
REFINE: Templates = (
    "[nice|interesting], but I [need|want] {wish}",
    "is there [another|one more], {wish}?",
    "I forgot to say: {wish}",
    "hm, it should also be {wish}",
    "do you have {wish} too?",
    "[could|can] you narrow it to {wish}?",
    "before I decide, I want {wish}",
    "not bad, although I would prefer {wish}",
)
GOODBYE: Templates = (
    "[thanks|thank you], that is [all|everything] [for now|for today|I need]",
    "[no|nope], that [will be|is] all[, thank you|. thanks]",
    "you have been [very helpful|a great help], goodbye",
    "[great|perfect|brilliant], [thanks a lot|many thanks] and bye",
    "nothing else, [have a nice day|cheers]",
    "I am all set, thank you[ so much| kindly]",
    "[okay|alright], that covers it. [bye now|goodbye]",
    "much obliged, [see you|so long]!",
    "that does it[ for me|], thanks for your help",
    "wonderful service, bye bye!",
)

# Ways to express one constraint in an answer; {slot} is the value, {noun} what is looked for.
FRAGMENTS: dict[str, Templates] = {
    "food": (
        "{food} food",
        "{food}",
        "{food} cuisine",
        "some {food} dishes",
        "a(n) {food} place",
        "something {food}",
    ),
    "pricerange": (
        "something {pricerange}",
        "a(n) {pricerange} {noun}",
        "{pricerange}",
        "one that is {pricerange}",
    ),
    "area": (
        "in the {area}",
        "the {area}",
        "the {area} of town",
        "somewhere in the {area}",
        "around the {area}",
    ),
    "type": ("a(n) {type}", "some kind of {type}", "a nice {type}"),
    "stars": ("{stars} stars", "one with {stars} stars", "a {stars} star place", "a rating of {stars} stars"),
    "parking": ("with parking", "a place with parking", "one that offers parking", "parking for our car"),
    "internet": ("with internet", "a place with wifi", "one that has internet", "wifi for my laptop"),
    "departure": (
        "from {departure}",
        "leaving from {departure}",
        "starting in {departure}",
        "out of {departure}",
    ),
    "destination": (
        "to {destination}",
        "going to {destination}",
        "heading for {destination}",
        "towards {destination}",
    ),
    "day": ("on {day}", "this {day}", "on the coming {day}"),
    "leaveat": (
        "after {leaveat}",
        "leaving after {leaveat}",
        "no earlier than {leaveat}",
        "departing from {leaveat} on",
    ),
    "arriveby": (
        "arriving by {arriveby}",
        "there by {arriveby}",
        "arriving before {arriveby}",
        "in by {arriveby}",
    ),
    "bookpeople": (
        "for {bookpeople} {persons}",
        "for a party of {bookpeople}",
        "for a group of {bookpeople}",
    ),
    "bookday": ("on {bookday}", "this {bookday}", "for {bookday}", "starting {bookday}"),
    "booktime": ("at {booktime}", "around {booktime}", "for {booktime}"),
    "bookstay": ("for {bookstay} {nights}", "staying {bookstay} {nights}"),
}
TAXI_FRAGMENTS: dict[str, Templates] = {
    "departure": ("from {departure}", "picking us up at {departure}", "leaving {departure}"),
    "destination": ("to {destination}", "going to {destination}", "that drops us at {destination}"),
    "leaveat": ("after {leaveat}", "at {leaveat}", "leaving at {leaveat}", "setting off at {leaveat}"),
    "arriveby": ("by {arriveby}", "arriving by {arriveby}", "to be there by {arriveby}"),
}
# Parts of a noun phrase that describes what is looked for: before and after the noun.
BEFORE: dict[str, Templates] = {
    "pricerange": ("{pricerange}",),
    "stars": ("{stars} star",),
    "food": ("{food}",),
}
AFTER: dict[str, Templates] = {
    "area": ("in the {area}", "in the {area} of town", "somewhere in the {area}", "in the {area} quarter"),
    "food": ("serving {food} food", "with {food} cuisine", "that cooks {food} dishes"),
    "stars": ("with {stars} stars", "rated {stars} stars"),
    "pricerange": ("that is {pricerange}",),
    "parking": ("with parking", "that has parking"),
    "internet": ("with wifi", "that has internet"),
}
NAMED: Templates = (
    "a(n) {noun} called {name}",
    "{name}",
    "details on {name}",
    "the {noun} {name}",
    "{name}, a(n) {noun}",
)
NOUNS: dict[str, Templates] = {
    "restaurant": ("restaurant", "place to eat", "eatery", "spot for dinner", "dining place"),
    "hotel": ("place to stay", "place to sleep", "bed for the night", "lodging"),
    "attraction": ("attraction", "place to visit", "sight", "thing to see", "outing"),
    "train": ("train", "train ride", "rail connection"),
    "taxi": ("taxi", "cab", "taxi ride", "car"),
}
ATTRIBUTES: dict[str, Templates] = {
    "phone": ("phone number", "telephone number", "contact number", "number to call"),
    "address": ("address", "street address", "exact address", "address of the place"),
    "postcode": ("postcode", "postal code", "zip code"),
    "trainid": ("train id", "train number", "id of the train"),
    "price": ("price", "fare", "ticket price", "cost"),
    "duration": ("travel time", "duration", "length of the journey"),
    "entrancefee": ("entrance fee", "admission price", "entry fee"),
    "area": ("area", "part of town"),
    "pricerange": ("price range", "price level"),
    "stars": ("star rating", "number of stars"),
    "food": ("type of food", "kind of cuisine"),
    "type": ("car type", "make and colour of the car", "kind of car"),
    "openhours": ("opening hours", "hours"),
    "leaveat": ("departure time", "time it leaves"),
    "arriveby": ("arrival time", "time it arrives"),
}
TOPICS: dict[str, str] = {
    "food": "cuisine",
    "pricerange": "price",
    "area": "area",
    "type": "type",
    "stars": "star rating",
    "parking": "parking",
    "internet": "internet",
    "day": "day",
}
# Ways to write a value; a value without an entry is written as it is.
SURFACES: dict[tuple[str, str], Templates] = {
    ("pricerange", "cheap"): ("cheap", "cheap", "inexpensive", "affordable"),
    ("pricerange", "moderate"): ("moderate", "moderately priced", "mid-priced"),
    ("pricerange", "expensive"): ("expensive", "expensive", "upmarket", "fancy"),
    ("area", "centre"): ("centre", "centre", "center"),
    ("type", "swimmingpool"): ("swimming pool", "pool"),
    ("type", "concerthall"): ("concert hall", "concert venue"),
    ("type", "architecture"): ("architectural sight", "landmark building"),
    ("type", "guesthouse"): ("guesthouse", "guest house"),
    ("type", "cinema"): ("cinema", "movie theatre"),
    ("type", "nightclub"): ("nightclub", "night club"),
}
NUMBER_WORDS = {
    "1": "one",
    "2": "two",
    "3": "three",
    "4": "four",
    "5": "five",
    "6": "six",
    "7": "seven",
    "8": "eight",
}
